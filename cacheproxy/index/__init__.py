"""Vector partitions behind the VectorIndex port: flat matrices, graphs, snapshots, one guard."""
