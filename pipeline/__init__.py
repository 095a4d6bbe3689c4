"""The stages of a round on Ray, and the rounds that join them.

Read in this order: `artifacts` (what a stage leaves behind), `stage` (how it becomes kill-safe), then the stages in the
order of the round: `shard`, `embed`, `cluster`, `select`, `train`, `evaluate`; then `rounds`. `report` and `plan` read
what they wrote or would write. Numerics live in `curation` and `trainers`.
"""
