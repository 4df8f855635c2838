-- An evidence store as version 1 of the schema made it: what files in the field look like. Never edited.
CREATE TABLE IF NOT EXISTS meta (key VARCHAR NOT NULL, value VARCHAR NOT NULL);
INSERT INTO meta VALUES ('schema_version', '1'), ('created_by', 'mesh-provenance 0.1.0');
CREATE TABLE IF NOT EXISTS spans (
  trace_id UUID NOT NULL,
  span_id UBIGINT NOT NULL,
  parent_span_id UBIGINT,
  trace_state VARCHAR,
  flags BIGINT,
  name VARCHAR NOT NULL,
  kind VARCHAR NOT NULL,
  start_time_unix_nano BIGINT NOT NULL,
  end_time_unix_nano BIGINT NOT NULL,
  duration_ns BIGINT NOT NULL,
  status_code VARCHAR NOT NULL,
  status_message VARCHAR,
  service_name VARCHAR NOT NULL,
  service_namespace VARCHAR,
  service_instance_id VARCHAR,
  witness VARCHAR NOT NULL,
  resource_id UBIGINT NOT NULL,
  scope_id UBIGINT NOT NULL,
  received_unix_nano BIGINT NOT NULL,
  http_request_method VARCHAR,
  http_route VARCHAR,
  http_response_status_code BIGINT,
  url_full VARCHAR,
  url_path VARCHAR,
  rpc_system VARCHAR,
  rpc_service VARCHAR,
  rpc_method VARCHAR,
  rpc_grpc_status_code BIGINT,
  server_address VARCHAR,
  server_port BIGINT,
  network_peer_address VARCHAR,
  network_peer_port BIGINT,
  client_address VARCHAR,
  user_agent_original VARCHAR,
  db_system_name VARCHAR,
  messaging_system VARCHAR,
  peer_service VARCHAR,
  error_type VARCHAR,
  component VARCHAR,
  upstream_cluster VARCHAR,
  response_flags VARCHAR,
  guid_x_request_id VARCHAR,
  provenance_request_hash VARCHAR,
  provenance_request_size BIGINT,
  provenance_response_size BIGINT,
  provenance_request_id VARCHAR,
  provenance_stamp_status VARCHAR,
  provenance_stamp_kid VARCHAR,
  provenance_stamp_nonce VARCHAR,
  provenance_stamp_time_unix_ms BIGINT,
  provenance_peer_principal VARCHAR,
  attributes MAP(VARCHAR, VARCHAR),
  attributes_json MAP(VARCHAR, VARCHAR),
  dropped_attributes_count BIGINT,
  dropped_events_count BIGINT,
  dropped_links_count BIGINT
);
CREATE TABLE IF NOT EXISTS span_events (
  trace_id UUID NOT NULL,
  span_id UBIGINT NOT NULL,
  time_unix_nano BIGINT NOT NULL,
  name VARCHAR NOT NULL,
  attributes MAP(VARCHAR, VARCHAR),
  attributes_json MAP(VARCHAR, VARCHAR),
  dropped_attributes_count BIGINT
);
CREATE TABLE IF NOT EXISTS span_links (
  trace_id UUID NOT NULL,
  span_id UBIGINT NOT NULL,
  linked_trace_id UUID NOT NULL,
  linked_span_id UBIGINT NOT NULL,
  trace_state VARCHAR,
  flags BIGINT,
  attributes MAP(VARCHAR, VARCHAR),
  attributes_json MAP(VARCHAR, VARCHAR),
  dropped_attributes_count BIGINT
);
CREATE TABLE IF NOT EXISTS resources (
  resource_id UBIGINT NOT NULL,
  service_name VARCHAR NOT NULL,
  schema_url VARCHAR,
  attributes MAP(VARCHAR, VARCHAR),
  attributes_json MAP(VARCHAR, VARCHAR),
  dropped_attributes_count BIGINT
);
CREATE TABLE IF NOT EXISTS scopes (
  scope_id UBIGINT NOT NULL,
  name VARCHAR NOT NULL,
  version VARCHAR,
  schema_url VARCHAR,
  attributes MAP(VARCHAR, VARCHAR),
  attributes_json MAP(VARCHAR, VARCHAR),
  dropped_attributes_count BIGINT
);
CREATE TABLE IF NOT EXISTS proxy_records (
  record_id UBIGINT NOT NULL,
  source VARCHAR NOT NULL,
  service_name VARCHAR NOT NULL,
  service_instance_id VARCHAR,
  direction VARCHAR,
  start_time_unix_nano BIGINT NOT NULL,
  duration_ns BIGINT,
  request_id VARCHAR,
  trace_id UUID,
  method VARCHAR,
  path VARCHAR,
  authority VARCHAR,
  protocol VARCHAR,
  response_code BIGINT,
  response_flags VARCHAR,
  bytes_received BIGINT,
  bytes_sent BIGINT,
  upstream_host VARCHAR,
  upstream_cluster VARCHAR,
  upstream_local_address VARCHAR,
  downstream_local_address VARCHAR,
  downstream_remote_address VARCHAR,
  requested_server_name VARCHAR,
  user_agent VARCHAR,
  received_unix_nano BIGINT NOT NULL,
  attributes MAP(VARCHAR, VARCHAR)
);
CREATE TABLE IF NOT EXISTS ingest_errors (
  received_unix_nano BIGINT NOT NULL,
  source VARCHAR NOT NULL,
  reason VARCHAR NOT NULL,
  count BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS egress_allow (
  service_name VARCHAR,
  destination VARCHAR NOT NULL,
  port INTEGER
);
CREATE TABLE IF NOT EXISTS access_logs (
  source VARCHAR NOT NULL,
  service_name VARCHAR NOT NULL,
  offset_bytes BIGINT NOT NULL,
  head_bytes BIGINT NOT NULL,
  head_hash VARCHAR NOT NULL,
  read_unix_nano BIGINT NOT NULL
);
INSERT INTO spans (trace_id, span_id, name, kind, start_time_unix_nano, end_time_unix_nano, duration_ns, status_code,
  service_name, witness, resource_id, scope_id, received_unix_nano, attributes, attributes_json) VALUES
  ('4bf92f35-77b3-4da6-a3ce-929d0e0e4736', 1, 'POST /buy', 'SERVER', 1790000000000000000, 1790000000100000000, 100000000, 'UNSET',
   'gateway', 'app', 1, 1, 1790000001000000000, MAP {'app.tenant': 'acme'}, MAP {'thread.id': '7'}),
  ('4bf92f35-77b3-4da6-a3ce-929d0e0e4736', 2, 'checkout/Buy', 'CLIENT', 1790000000010000000, 1790000000090000000, 80000000, 'UNSET',
   'gateway', 'app', 1, 1, 1790000007000000000, MAP {'app.tenant': 'acme', 'app.cart': 'c1'}, NULL),
  ('00000000-0000-0000-8000-00000000000f', 3, 'GET /', 'SERVER', 1790000300000000000, 1790000300005000000, 5000000, 'ERROR',
   'catalog', 'app', 2, 1, 1790000301000000000, NULL, MAP {'app.cached': 'true'}),
  -- The first trace again, an hour later.
  ('4bf92f35-77b3-4da6-a3ce-929d0e0e4736', 4, 'retry', 'INTERNAL', 1790003600000000000, 1790003600001000000, 1000000, 'UNSET',
   'gateway', 'app', 1, 1, 1790003601000000000, NULL, NULL);
INSERT INTO resources (resource_id, service_name) VALUES (1, 'gateway'), (2, 'catalog');
INSERT INTO scopes (scope_id, name) VALUES (1, 'tests');
