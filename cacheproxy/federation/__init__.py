"""Starting federated training: the processes of a server, of a node, and of a simulation."""
