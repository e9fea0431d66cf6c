"""The HTTPS API: leases for agents, search and streams for people. OpenAPI under `/v1/openapi.json`.

Every route but `/healthz` and the download of the CA wants `Authorization: Bearer <access token>`, verified with the
issuer's keys. Taking a lease needs any valid token; reading records needs the role auditor, investigator or admin.
All errors have one shape: `{"error": {"code", "message"}}`.
"""
