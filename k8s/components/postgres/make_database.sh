#!/usr/bin/env bash
# Runs once, by the image's entry point, on an empty volume: MLflow's user owns a database and is
# not the superuser.
set -euo pipefail
psql -v ON_ERROR_STOP=1 -v password="$MLFLOW_DATABASE_PASSWORD" --username "$POSTGRES_USER" <<'SQL'
CREATE ROLE mlflow LOGIN PASSWORD :'password';
CREATE DATABASE mlflow OWNER mlflow;
REVOKE ALL ON DATABASE mlflow FROM PUBLIC;
SQL
