// Charts as inline SVG: lines over rounds and steps, dots per row, shares of queries.

const MARKERS = {
  o: (x, y, r) => shape("circle", { cx: x, cy: y, r }),
  s: (x, y, r) => shape("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r }),
  D: (x, y, r) => polygon([[x, y - 1.3 * r], [x + 1.3 * r, y], [x, y + 1.3 * r], [x - 1.3 * r, y]]),
  "^": (x, y, r) => polygon([[x, y - 1.2 * r], [x + 1.2 * r, y + r], [x - 1.2 * r, y + r]]),
  v: (x, y, r) => polygon([[x, y + 1.2 * r], [x + 1.2 * r, y - r], [x - 1.2 * r, y - r]]),
};

function polygon(points) {
  return shape("polygon", { points: points.map((point) => point.join(",")).join(" ") });
}

// Round numbers that cover an interval, about as many as wanted.
function ticks(low, high, wanted, whole) {
  const span = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / wanted));
  let step = power * [1, 2, 5, 10].find((factor) => span / (power * factor) <= wanted);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return { step, values: found };
}

function tickText(value, step) {
  const digits = Math.max(0, Math.min(6, Math.ceil(-Math.log10(step) - 1e-9)));
  return value.toFixed(digits).replace("-", "−");
}

function legendOf(series) {
  return element("ul", { class: "legend" }, series.map((one) => element("li", {},
    shape("svg", { width: 26, height: 12, "aria-hidden": "true", class: `c-${one.colour}` },
      shape("line", { x1: 1, x2: 25, y1: 6, y2: 6, class: "line" }), MARKERS[one.marker](13, 6, 3.5)),
    SYSTEM_NAMES[one.label] || one.label)));
}

// The value on the axis: rounds are counted from the start of each stage, steps across all stages.
function placeOf(chart, value) {
  return chart.x === "round" ? value - chart.stages.findLast((stage) => stage.start <= value).start : value;
}

// A figure that is redrawn when its width changes.
function figure(title, legend, note, draw) {
  const plot = element("div", { class: "plot" });
  const node = element("figure", { class: "card chart" }, element("figcaption", {}, title), legend, plot, note && element("p", { class: "note" }, note));
  let drawn = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== drawn) plot.replaceChildren(...draw((drawn = width)));
  }).observe(plot);
  return node;
}

function emptyChart(title, why) {
  return element("figure", { class: "card chart" }, element("figcaption", {}, title), element("p", { class: "empty" }, why));
}

function lineChart(chart) {
  if (!chart.series.length) {
    return emptyChart(chart.title, "Not logged in this run.");
  }
  return figure(chart.title, legendOf(chart.series), chart.note, (width) => drawLines(chart, width, 230));
}

function drawLines(chart, width, height) {
  const box = { left: 48, right: width - 14, top: 24, bottom: height - 36 };
  const points = chart.series.flatMap((one) => one.lines.flat());
  const end = chart.stages[chart.stages.length - 1].end || 1;
  let low = Math.min(...points.map((point) => point[1])), high = Math.max(...points.map((point) => point[1]));
  const gap = (high - low || Math.abs(high) || 1) * 0.08;
  low = low >= 0 && low < 0.4 * high ? 0 : low - gap;
  high += gap;
  const x = (value) => box.left + (value / end) * (box.right - box.left);
  const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
  const across = ticks(0, end, Math.max(2, width / 90), true), up = ticks(low, high, 5, false);
  const svg = shape("svg", { width, height, role: "img", "aria-label": `${chart.title}: ${chart.series.map(spoken).join("; ")}` },
    up.values.map((value) => [
      shape("line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value), class: "grid" }),
      shape("text", { x: box.left - 8, y: y(value) + 4, class: "tick", "text-anchor": "end" }, tickText(value, up.step))]),
    across.values.map((value) => shape("text", { x: x(value), y: box.bottom + 17, class: "tick", "text-anchor": "middle" }, tickText(placeOf(chart, value), across.step))),
    shape("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "axis" }),
    shape("text", { x: box.right, y: height - 3, class: "tick name", "text-anchor": "end" }, chart.x),
    shape("text", { x: 4, y: 12, class: "tick name" }, chart.y),
    chart.stages.map((stage, number) => stageBand(stage, number, x, box, chart.stages.length)),
    chart.series.map((one) => shape("g", { class: `series c-${one.colour}` }, one.lines.map((line) => [
      line.length > 1 && shape("polyline", { points: line.map(([px, py]) => `${x(px)},${y(py)}`).join(" "), class: "line" }),
      line.length <= 40 && line.map(([px, py]) => MARKERS[one.marker](x(px), y(py), 3.2))]))));
  return [svg, tooltipOver(svg, chart, x, box, width)];
}

function stageBand(stage, number, x, box, total) {
  const start = x(stage.start), end = x(stage.end);
  // Names that would overlap are only in the tooltip.
  const fits = end - start > 6.5 * stage.name.length;
  return [
    total > 1 && number % 2 === 1 && shape("rect", { x: start, y: box.top - 8, width: Math.max(0, end - start), height: box.bottom - box.top + 8, class: "band" }),
    fits && shape("text", { x: (start + end) / 2, y: box.top - 12, class: "tick stage", "text-anchor": "middle" }, stage.name)];
}

const spoken = (one) => `${one.label} from ${three(one.lines[0][0][1])} to ${three(one.lines.at(-1).at(-1)[1])}`;

// The values nearest to the pointer, and a line at their position.
function tooltipOver(svg, chart, x, box, width) {
  const tip = element("div", { class: "tip", hidden: true });
  const cross = shape("line", { y1: box.top - 8, y2: box.bottom, class: "cross", visibility: "hidden" });
  svg.append(cross);
  const places = [...new Set(chart.series.flatMap((one) => one.lines.flat().map((point) => point[0])))].sort((a, b) => a - b);
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); });
  svg.addEventListener("pointermove", (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const place = places.reduce((best, other) => (Math.abs(x(other) - at) < Math.abs(x(best) - at) ? other : best));
    const stage = chart.stages.find((one) => place >= one.start && place <= one.end);
    const lines = chart.series.map((one) => [one, one.lines.flat().filter((point) => point[0] === place).at(-1)]).filter(([, point]) => point);
    tip.replaceChildren(element("b", {}, `${stage ? stage.name + ", " : ""}${chart.x} ${+placeOf(chart, place).toFixed(2)}`),
      ...lines.map(([one, point]) => element("div", { class: `c-${one.colour}` }, element("i", { class: "dot" }), `${one.label} `, element("b", {}, score(point[1])))));
    tip.hidden = false;
    cross.setAttribute("visibility", "visible");
    cross.setAttribute("x1", x(place));
    cross.setAttribute("x2", x(place));
    tip.style.left = `${Math.max(0, Math.min(width - tip.offsetWidth, x(place) + 10))}px`;
  });
  return tip;
}

// A name that fits into a width, with … where it was cut; the whole name is in the tooltip.
function clipped(name, width) {
  const most = Math.max(2, Math.floor(width / 7.2));
  return name.length <= most ? name : `${name.slice(0, most - 1).trimEnd()}…`;
}

// A line for every row, a dot for each of its systems.
function dotChart(title, given, looks) {
  const rows = given.filter((row) => Object.values(row.values).some(known));
  if (!rows.length) return emptyChart(title, "Not measured in these runs.");
  const legend = legendOf(looks.filter((look) => rows.some((row) => known(row.values[look.label]))));
  return figure(title, legend, null, (width) => {
    const height = 26 + 38 * rows.length, labels = Math.min(width * 0.38, 14 + 7.2 * Math.max(...rows.map((row) => row.label.length)));
    const all = rows.flatMap((row) => Object.values(row.values).filter(known));
    let low = Math.min(...all), high = Math.max(...all);
    const gap = (high - low || 0.1) * 0.12;
    low = Math.max(0, low - gap);
    high += gap;
    const x = (value) => labels + ((value - low) / (high - low)) * (width - labels - 56);
    const marks = ticks(low, high, Math.max(2, width / 110), false);
    return [shape("svg", { width, height, role: "img", "aria-label": `${title}: ${rows.map((row) => row.label + " " + Object.entries(row.values).filter(([, value]) => known(value)).map(([name, value]) => `${name} ${three(value)}`).join(", ")).join("; ")}` },
      marks.values.map((value) => [
        shape("line", { x1: x(value), x2: x(value), y1: 4, y2: height - 22, class: "grid" }),
        shape("text", { x: x(value), y: height - 6, class: "tick", "text-anchor": "middle" }, tickText(value, marks.step))]),
      rows.map((row, number) => {
        const y = 20 + 38 * number, found = looks.filter((look) => known(row.values[look.label]));
        const places = found.map((look) => x(row.values[look.label]));
        const text = shape("text", { x: labels - 12, y: y + 4, class: "label", "text-anchor": "end" }, clipped(row.label, labels - 14));
        text.append(shape("title", {}, row.label));
        return [text,
          shape("text", { x: Math.max(...places) + 11, y: y + 4, class: "tick" }, three(Math.max(...found.map((look) => row.values[look.label])))),
          shape("line", { x1: Math.min(...places), x2: Math.max(...places), y1: y, y2: y, class: "span" }),
          found.map((look, i) => {
            const mark = MARKERS[look.marker](places[i], y, 5);
            mark.append(shape("title", {}, `${row.label} · ${SYSTEM_NAMES[look.label] || look.label}: ${three(row.values[look.label])}`));
            return shape("g", { class: `series c-${look.colour}` }, mark);
          })];
      }))];
  });
}

// Shares of the queries in classes, one bar for each system.
function shareBars(title, rows, classes, note) {
  return element("figure", { class: "card chart" }, element("figcaption", {}, title),
    element("ul", { class: "legend" }, classes.map((name, i) => element("li", {}, element("i", { class: `swatch r-${i}` }), name))),
    element("div", { class: "shares" }, rows.map((row) => {
      const total = row.counts.reduce((sum, value) => sum + value, 0) || 1;
      const said = row.counts.map((value, i) => `${classes[i]}: ${count(value)} (${((100 * value) / total).toFixed(0)} %)`);
      return [element("span", { class: "label", title: row.label }, row.label),
        element("span", { class: "stack", role: "img", "aria-label": said.join(", ") }, row.counts.map((value, i) => {
          const part = bar(`r-${i}`, value / total);
          part.title = said[i];
          if (value / total > 0.07) part.append(`${((100 * value) / total).toFixed(0)} %`);
          return part;
        }))];
    })),
    note && element("p", { class: "note" }, note));
}
