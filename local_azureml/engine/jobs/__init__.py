"""Jobs: what runs in them, step by step."""
