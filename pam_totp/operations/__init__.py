"""What can be done to one user's factors: authenticate, enrol, resynchronise, import, and self-service."""
