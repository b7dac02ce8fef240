"""What is deployed and what runs: versions, pools, instances, jobs, reconciliation."""
