"""What is deployed: the catalog, deploys with their images, removals."""
