"""The rpcs: thin handlers over the rooms below, one file a group, and the one table of status codes."""
