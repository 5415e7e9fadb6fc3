"""Operations on users' second factors: authenticate, enrol, resynchronise, import, and self-service."""
