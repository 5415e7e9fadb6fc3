"""The tables of the PostgreSQL store, and the condition that every change requires.

Rules:
1. A change repeats the condition GUARD in its WHERE, so that a primary that lacks a standby makes no change. GUARD is
   the reason if the condition is not met, and NULL otherwise.
2. The database stores the required replication, so all hosts have the same requirement.
3. A name is in the encoding of file names (`file.file_name`), which is ASCII in every database.
4. `serial` contains the result of `serial_key` for each serial number. `name` is the owner, or NULL for a token in
   stock.
5. The version of a record only increases, even if its user is deleted and enrolled again. The version starts at the
   current time.
6. `stock` contains the entry of each serial number that is or was in stock (`stock`). The deletion of a row
   of `serial` also deletes the entry.
7. `member` contains the hosts that may ask, by the SHA-256 of their certificates. `may` names the groups of users that
   a group of members may ask about, `user_group` the users of each group. `services` is NULL if all services are
   permitted. `ends` is the end of the newest certificate.
   A row of `may` with the user group `postgres_members.ENROLMENT` lets the members enrol users.
8. `epoch` of `store` increases after each restore (`postgres_fence`). A process refuses a server with a lower epoch
   than the highest epoch that the process has seen. `cluster` is the identity of the server and of the tables at that
   time, which differs in a restored dump.
"""

from __future__ import annotations

VERSION = 1
DECOYS = 64
SYNCHRONOUS, ENGINE, NONE = "synchronous", "engine", "none"
REPLICATION = (SYNCHRONOUS, ENGINE, NONE)  # by a standby, by an engine such as CockroachDB, not at all

_FLUSHED = """WHEN current_setting('fsync') <> 'on' THEN 'fsync is off'
 WHEN current_setting('client_min_messages') = 'error' THEN 'client_min_messages hides warnings'"""
GUARDS = {
    SYNCHRONOUS: f"""CASE {_FLUSHED}
 WHEN current_setting('synchronous_standby_names') = '' THEN 'synchronous_standby_names is empty'
 WHEN current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')
 THEN 'synchronous_commit is ' || current_setting('synchronous_commit') END""",
    NONE: f"""CASE {_FLUSHED}
 WHEN current_setting('synchronous_commit') = 'off' THEN 'synchronous_commit is off' END""",
    ENGINE: "NULL::text",
}

_NEW_VERSION = "floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_NOW = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"  # milliseconds

CREATE = (
    "CREATE SCHEMA IF NOT EXISTS pam_totp",
    """CREATE TABLE IF NOT EXISTS pam_totp.store (
 singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
 version integer NOT NULL,
 replication text NOT NULL)""",
    """ALTER TABLE pam_totp.store ADD COLUMN IF NOT EXISTS epoch bigint NOT NULL DEFAULT 0,
 ADD COLUMN IF NOT EXISTS cluster text""",
    """CREATE TABLE IF NOT EXISTS pam_totp.record (
 name text COLLATE "C" PRIMARY KEY,
 version bigint NOT NULL CHECK (version > 0),
 body bytea NOT NULL CHECK (octet_length(body) <= 65536),
 asked jsonb NOT NULL DEFAULT '[]') WITH (fillfactor = 50)""",
    """CREATE TABLE IF NOT EXISTS pam_totp.decoy (
 slot integer PRIMARY KEY,
 version bigint NOT NULL,
 body bytea NOT NULL) WITH (fillfactor = 50)""",
    """CREATE TABLE IF NOT EXISTS pam_totp.serial (
 serial text COLLATE "C" PRIMARY KEY,
 name text COLLATE "C")""",
    "CREATE INDEX IF NOT EXISTS serial_name ON pam_totp.serial (name)",
    """CREATE TABLE IF NOT EXISTS pam_totp.stock (
 serial text COLLATE "C" PRIMARY KEY REFERENCES pam_totp.serial (serial) ON DELETE CASCADE,
 body bytea NOT NULL CHECK (octet_length(body) <= 65536))""",
    """CREATE TABLE IF NOT EXISTS pam_totp.member (
 name text COLLATE "C" PRIMARY KEY,
 fingerprint bytea UNIQUE CHECK (octet_length(fingerprint) = 32),
 next_fingerprint bytea UNIQUE CHECK (octet_length(next_fingerprint) = 32),
 groups text[] NOT NULL,
 services text[],
 added timestamptz NOT NULL,
 joined timestamptz,
 revoked timestamptz,
 ends timestamptz)""",
    "ALTER TABLE pam_totp.member ADD COLUMN IF NOT EXISTS ends timestamptz",  # older tables lack this column
    """CREATE TABLE IF NOT EXISTS pam_totp.user_group (
 user_group text COLLATE "C",
 name text COLLATE "C",
 PRIMARY KEY (name, user_group))""",
    """CREATE TABLE IF NOT EXISTS pam_totp.may (
 member_group text COLLATE "C",
 user_group text COLLATE "C",
 PRIMARY KEY (member_group, user_group))""",
    """CREATE TABLE IF NOT EXISTS pam_totp.joining (
 token_digest bytea PRIMARY KEY CHECK (octet_length(token_digest) = 32),
 member text COLLATE "C" NOT NULL,
 expires timestamptz NOT NULL)""",
    """CREATE OR REPLACE FUNCTION pam_totp.version_goes_up() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.version <= OLD.version OR NEW.name <> OLD.name THEN
    RAISE EXCEPTION 'the version of a record must go up';
  END IF;
  RETURN NEW;
END $$""",
    "DROP TRIGGER IF EXISTS version_goes_up ON pam_totp.record",
    """CREATE TRIGGER version_goes_up BEFORE UPDATE ON pam_totp.record
 FOR EACH ROW EXECUTE FUNCTION pam_totp.version_goes_up()""",
)
IS_COPIED = "SELECT 1 WHERE to_regclass('pam_totp.copied_record') IS NOT NULL"
GRANT = (
    "GRANT USAGE ON SCHEMA pam_totp TO {0}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON pam_totp.record, pam_totp.decoy, pam_totp.serial TO {0}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON pam_totp.stock TO {0}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON pam_totp.member, pam_totp.joining TO {0}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON pam_totp.may, pam_totp.user_group TO {0}",
    "GRANT SELECT, UPDATE (epoch, cluster) ON pam_totp.store TO {0}",
)
FILL_DECOY = """INSERT INTO pam_totp.decoy (slot, version, body) VALUES ($1::integer, 1, $2)
 ON CONFLICT (slot) DO NOTHING"""
SET_STORE = """INSERT INTO pam_totp.store (version, replication) VALUES ($1::integer, $2)
 ON CONFLICT (singleton) DO UPDATE SET version = EXCLUDED.version, replication = EXCLUDED.replication"""
# Tables of an older pam_totp have no epoch.
STORE = """SELECT s.version, s.replication, coalesce((to_jsonb(s) ->> 'epoch')::bigint, 0), to_jsonb(s) ->> 'cluster'
 FROM pam_totp.store AS s"""
NOTE_CLUSTER = "UPDATE pam_totp.store SET cluster = coalesce(cluster, $1)"
SEES_CLUSTER = """SELECT 1 WHERE to_regprocedure('pg_control_system()') IS NOT NULL
 AND has_function_privilege(to_regprocedure('pg_control_system()')::oid, 'EXECUTE')"""
CLUSTER = "SELECT system_identifier || '/' || 'pam_totp.store'::regclass::oid FROM pg_control_system()"

USERS = "SELECT name FROM pam_totp.record WHERE name > $1 ORDER BY name LIMIT $2::bigint"
BODIES = """SELECT r.name, r.body FROM jsonb_array_elements_text($1::jsonb) AS n(name)
 JOIN pam_totp.record AS r ON r.name = n.name"""
A_SECRET = """SELECT body FROM pam_totp.record WHERE position('"secret": "'::bytea IN body) > 0 LIMIT 1"""
ALL_BODIES = "SELECT name, body FROM pam_totp.record WHERE name > $1 ORDER BY name LIMIT $2::bigint"
HAS_RECORDS = "SELECT 1 FROM pam_totp.record LIMIT 1"
CLAIM = """INSERT INTO pam_totp.serial (serial, name) VALUES ($1, $2)
 ON CONFLICT (serial) DO UPDATE SET name = EXCLUDED.name WHERE serial.name = EXCLUDED.name RETURNING name"""
OWNER = "SELECT name FROM pam_totp.serial WHERE serial = $1 AND name IS NOT NULL"
OWNERS = """SELECT s.serial, s.name FROM jsonb_array_elements_text($1::jsonb) AS n(serial)
 JOIN pam_totp.serial AS s ON s.serial = n.serial"""
RELEASE = "DELETE FROM pam_totp.serial WHERE serial = $1 AND name = $2"


class Statements:
    """The statements with the guard of one kind of replication. `epoch` is that of the server."""

    def __init__(self, replication: str, epoch: int = 0) -> None:
        self.replication, self.epoch = replication, epoch
        guard = GUARDS[replication]
        is_met = f"({guard}) IS NULL"
        row = f"r.version, r.body, r.asked::text, {_NOW}, {guard}"
        self.read = f"SELECT {row} FROM (SELECT 1) AS always LEFT JOIN pam_totp.record AS r ON r.name = $1"
        self.lock = f"SELECT {row} FROM pam_totp.record AS r WHERE r.name = $1 FOR UPDATE"
        self.change = f"""UPDATE pam_totp.record SET version = version + 1, body = $3, asked = $4::jsonb
 WHERE name = $1 AND version = $2::bigint AND {is_met} RETURNING 1"""
        self.create = f"""INSERT INTO pam_totp.record (name, version, body, asked)
 SELECT $1, {_NEW_VERSION}, $2, $3::jsonb WHERE {is_met} ON CONFLICT (name) DO NOTHING RETURNING 1"""
        self.delete = f"DELETE FROM pam_totp.record WHERE name = $1 AND version = $2::bigint AND {is_met} RETURNING 1"
        self.use_decoy = f"""UPDATE pam_totp.decoy SET version = version + 1, body = $1 WHERE slot =
 (SELECT slot FROM pam_totp.decoy ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED) AND {is_met} RETURNING 1"""
        self.insert_all = f"""INSERT INTO pam_totp.record (name, version, body)
 SELECT n.name, {_NEW_VERSION}, convert_to(n.body, 'UTF8')
 FROM jsonb_to_recordset($1::jsonb) AS n(name text, body text) WHERE {is_met} RETURNING 1"""
        self.claim_stock = f"""INSERT INTO pam_totp.serial (serial)
 SELECT n.serial FROM jsonb_array_elements_text($1::jsonb) AS n(serial) WHERE {is_met} ORDER BY n.serial
 ON CONFLICT (serial) DO NOTHING RETURNING serial"""
        self.add_stock = f"""INSERT INTO pam_totp.stock (serial, body) SELECT n.serial, convert_to(n.body, 'UTF8')
 FROM jsonb_to_recordset($1::jsonb) AS n(serial text, body text) WHERE {is_met} RETURNING 1"""
        self.change_stock = f"""UPDATE pam_totp.stock SET body = $3
 WHERE serial = $1 AND body = $2 AND {is_met} RETURNING 1"""
        self.remove_stock = f"""DELETE FROM pam_totp.serial WHERE serial = $1 AND name IS NULL AND {is_met}
 AND EXISTS (SELECT 1 FROM pam_totp.stock AS s WHERE s.serial = $1 AND s.body = $2) RETURNING 1"""
        self.change_staged = f"""WITH done AS (UPDATE pam_totp.record AS r SET version = r.version + 1, body = s.body
 FROM staged AS s WHERE r.name = s.name AND r.version = s.version AND {is_met} RETURNING r.name)
 DELETE FROM staged USING done WHERE staged.name = done.name"""
        self.create_staged = f"""WITH done AS (INSERT INTO pam_totp.record (name, version, body)
 SELECT s.name, {_NEW_VERSION}, s.body FROM staged AS s WHERE s.version IS NULL AND {is_met} ORDER BY s.name
 ON CONFLICT (name) DO NOTHING RETURNING record.name) DELETE FROM staged USING done WHERE staged.name = done.name"""
