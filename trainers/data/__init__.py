"""The way from shards to views: order, reading, decoding, cropping, colour."""
