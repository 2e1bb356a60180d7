"""The web page: layout, events, the back ends that answer, and the hardened server around it."""
