"""From shards to views: order, reading, decoding, cropping, colour."""
