"""Parts about what the memory can do: recall, hops, distance, forgetting, sparse writes, attribution."""
