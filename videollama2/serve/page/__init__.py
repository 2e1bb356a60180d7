"""The web page: its layout, its event handlers, the back ends that answer, and the hardened server that runs it."""
