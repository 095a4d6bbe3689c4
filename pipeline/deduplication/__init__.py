"""The passes of deduplication: joining the rows that are compared, finding pairs, and deciding which rows are dropped."""
