-- What version 2 of the schema added to version 1, whose file comes first: what files in the field look like. Never edited.
UPDATE meta SET value = '2' WHERE key = 'schema_version';
CREATE TABLE trace_arrivals (
  trace_id_low UBIGINT NOT NULL,
  first_received_unix_nano BIGINT NOT NULL,
  last_received_unix_nano BIGINT NOT NULL
);
CREATE TABLE attribute_keys (
  attribute_key_id UBIGINT NOT NULL,
  key VARCHAR NOT NULL,
  stored_in VARCHAR NOT NULL,
  first_received_unix_nano BIGINT NOT NULL
);
CREATE MACRO spans_of_trace(id) AS TABLE
SELECT spans.* FROM spans JOIN (
  SELECT coalesce(min(first_received_unix_nano), -9223372036854775808) AS arrived_from,
    coalesce(max(last_received_unix_nano), 9223372036854775807) AS arrived_until
  FROM trace_arrivals
  WHERE trace_id_low = ('0x' || right(replace((id::UUID)::VARCHAR, '-', ''), 16))::UBIGINT
) ON received_unix_nano >= arrived_from AND received_unix_nano <= arrived_until
WHERE trace_id = id::UUID;
INSERT INTO trace_arrivals SELECT ('0x' || right(replace(trace_id::VARCHAR, '-', ''), 16))::UBIGINT, received_unix_nano, received_unix_nano
FROM spans;
INSERT INTO proxy_records (record_id, source, service_name, start_time_unix_nano, path, received_unix_nano, attributes) VALUES
  (18446744073709551615, '/var/log/envoy.json', 'catalog', 1790000000000000000, '/items', 1790000002000000000, MAP {'route_name': '"default"'});
