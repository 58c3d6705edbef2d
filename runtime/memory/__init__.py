"""Page pool, host weights and KV cache."""
