"""Media that clients name or send: fetched from allowed addresses and decoded in sandboxed processes."""
