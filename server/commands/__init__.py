"""What an operator starts: the server, workers, migrations, checks, a load test."""
