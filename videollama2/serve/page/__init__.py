"""Makes the web page: its layout, its events, the back ends that answer, and the hardened server that runs it."""
