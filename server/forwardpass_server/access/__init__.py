"""Who may call what: levels of rpcs, credentials, and the gate that compares them."""
