"""The same model at work beyond one conversation: offline, and on engines that others build."""
