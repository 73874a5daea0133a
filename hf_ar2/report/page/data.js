// The format of the data: a length, JSON, then the arrays; see pack() in page.py.

const ARRAYS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array };

async function unpack(base64) {
  if (!("DecompressionStream" in window)) {
    throw new Error("this browser cannot unpack the report's data; use a browser from 2023 or later (Chrome, Edge, Firefox 113, Safari 16.4)");
  }
  const text = atob(base64);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const block = await new Response(stream).arrayBuffer();
  const length = new DataView(block).getUint32(0, true);
  const start = 4 + length;
  return JSON.parse(new TextDecoder().decode(new Uint8Array(block, 4, length)), (_, value) => {
    if (value === null || typeof value !== "object" || !Array.isArray(value.$)) return value;
    const [kind, offset, size] = value.$;
    return new ARRAYS[kind](block, start + offset, size);
  });
}

// Systems under other names than the data has.
const SYSTEM_NAMES = { hybrid: "retriever + BM25" };

// The state of the page: the data, the pair that is compared, and the listeners to its changes.
class Report {
  constructor(data) {
    Object.assign(this, data);
    this.listeners = [];
    this.systems = data.browser.systems;
    this.metrics = data.browser.metrics;
  }

  name(number) {
    const { run, row, system } = this.systems[number];
    const label = this.runs.length > 1 ? `${this.runs[run].label} · ${row}` : row;
    return row === "BM25" ? label : `${label} · ${SYSTEM_NAMES[system] || system}`;
  }

  compare(before, after) {
    this.before = before;
    this.after = after;
    for (const listener of this.listeners) listener();
  }

  // The paired test of system j against system i on the tested metric.
  test(i, j) {
    const found = this.browser.tests[i < j ? `${i}-${j}` : `${j}-${i}`];
    if (!found || i < j) return found;
    return { ...found, difference: -found.difference, wins: found.losses, losses: found.wins };
  }

  mean(system, metric) {
    const values = this.systems[system].values[metric];
    let sum = 0;
    for (const value of values) sum += value;
    return sum / values.length;
  }
}
