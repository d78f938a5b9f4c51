"""What the server says about itself: stamps of a request, counts of a version, and the page Prometheus reads."""
