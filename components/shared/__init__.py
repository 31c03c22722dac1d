"""What more than one step uses."""
