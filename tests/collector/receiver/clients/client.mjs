// Sends spans with one of OpenTelemetry's JavaScript exporters and prints, a JSON line a batch, the ids that were acknowledged.
//
//   node client.mjs MODULES PROTOCOL URL COMPRESSION COUNT [BATCH]
//
// The spans are those of `sent_spans.py`: a span's values follow from its number. It ends at the first batch that fails.

import { createRequire } from "node:module";

const [modules, protocol, url, compression, count, batch = "64"] = process.argv.slice(2);
const require = createRequire(`${modules}/package.json`);
const { ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } = require("@opentelemetry/api");
const { resourceFromAttributes } = require("@opentelemetry/resources");
const { TracerProvider } = require("@opentelemetry/sdk-trace");
const { OTLPTraceExporter } = require(`@opentelemetry/exporter-trace-otlp-${protocol}`);

const START = 1763859600000000000n;

const hrTime = (nanos) => [Number(nanos / 1000000000n), Number(nanos % 1000000000n)];
const hex = (number, digits) => number.toString(16).padStart(digits, "0");

class Kept {
  ended = [];
  onStart() {}
  onEnd(span) {
    this.ended.push(span);
  }
  forceFlush() {
    return Promise.resolve();
  }
  shutdown() {
    return Promise.resolve();
  }
}

function makeSpan(tracer, i, parent) {
  const start = START + BigInt(i) * 1000000n;
  const options = {
    kind: i % 2 ? SpanKind.CLIENT : SpanKind.SERVER,
    startTime: hrTime(start),
    attributes: {
      "http.route": `/naïve/{größe}/${i}`,
      "http.response.status_code": 200 + (i % 300),
      text: `Zażółć 测试 🚀 "${i}"\n`,
      yes: i % 2 === 0,
      integer: i * 1000003 - 7,
      fraction: i + 0.5,
      texts: ["a", `ß${i}`],
      flags: [true, false],
      integers: [i, -i - 1],
      fractions: [0.25, i + 0.5],
    },
    links: [
      {
        context: { traceId: hex(i + 1, 32), spanId: hex(i + 2, 16), traceFlags: 1 },
        attributes: { why: `батч ${i}`, n: i },
      },
    ],
  };
  const span = tracer.startSpan(`GET /größe 测试 ${i}`, options, parent ?? ROOT_CONTEXT);
  span.addEvent("wystąpiło", { "exception.message": `błąd ${i}`, attempt: i }, hrTime(start + 5n));
  if (i % 3 === 0) span.setStatus({ code: SpanStatusCode.ERROR, message: `nie działa ${i}` });
  if (i % 3 === 1) span.setStatus({ code: SpanStatusCode.OK });
  span.end(hrTime(start + BigInt(i) * 1000n + 7n));
  return span;
}

function makeSpans(number) {
  const kept = new Kept();
  const resource = resourceFromAttributes({ "service.name": `javascript-${protocol}-${compression}`, "host.name": "węzeł" });
  const tracer = new TracerProvider({ resource, spanProcessors: [kept] }).getTracer("clients", "1.2.3");
  let parent;
  for (let i = 0; i < number; i++) {
    const span = makeSpan(tracer, i, i % 5 ? parent : undefined);
    if (i % 5 === 0) parent = trace.setSpan(ROOT_CONTEXT, span);
  }
  return kept.ended;
}

const exporter = new OTLPTraceExporter({ url, compression, timeoutMillis: 5000 });
const spans = makeSpans(Number(count));
let failed = false;
for (let i = 0; i < spans.length && !failed; i += Number(batch)) {
  const some = spans.slice(i, i + Number(batch));
  const result = await new Promise((resolve) => exporter.export(some, resolve));
  failed = result.code !== 0;
  if (failed) console.error(result.error);
  else console.log(JSON.stringify(some.map((s) => [s.spanContext().traceId, s.spanContext().spanId])));
}
await exporter.shutdown();
process.exitCode = failed ? 1 : 0;
