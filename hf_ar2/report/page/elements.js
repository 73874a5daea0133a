// Elements and numbers. Text becomes a text node, never markup.

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes, ...children) {
  return built(document.createElement(name), attributes, children);
}

function shape(name, attributes, ...children) {
  return built(document.createElementNS(SVG, name), attributes, children);
}

function built(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// A bar whose width is a share of its parent's; set through the DOM, which the security policy allows.
function bar(className, share) {
  const node = element("i", { class: className });
  node.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
  return node;
}

function option(value, text, selected) {
  return element("option", { value, selected }, text);
}

const count = (number) => number.toLocaleString("en-GB");
const counted = (number, one, several = `${one}s`) => `${count(number)} ${number === 1 ? one : several}`;
const queries = (number) => counted(number, "query", "queries");
const three = (number) => (Number.isFinite(number) ? number.toFixed(3) : "–");
const known = (value) => value !== undefined && value !== null && Number.isFinite(value);

function signed(number) {
  const text = Math.abs(number).toFixed(3);
  if (text === "0.000") return "0.000";
  return (number > 0 ? "+" : "−") + text;
}

// About three significant digits, for scores of any scale.
function score(number) {
  if (!Number.isFinite(number)) return "–";
  const size = Math.abs(number);
  const text = size >= 100 ? number.toFixed(1) : size >= 10 ? number.toFixed(2) : size >= 0.1 || size === 0 ? number.toFixed(3) : number.toPrecision(3);
  return text.replace("-", "−");
}

// As `format_duration` in progress.py: the two largest units.
function duration(seconds) {
  if (!known(seconds)) return "–";
  const whole = Math.round(seconds), minutes = Math.round(seconds / 60);
  const two = (large, unit, small, smaller) => `${count(large)} ${unit}${small ? ` ${small} ${smaller}` : ""}`;
  if (whole < 60) return `${whole} s`;
  return whole < 3600 ? two(Math.floor(whole / 60), "min", whole % 60, "s") : two(Math.floor(minutes / 60), "h", minutes % 60, "min");
}

const mark = (test) => (test.difference < 0 ? "▼" : "*").repeat([0.05, 0.01, 0.001].filter((level) => test.p_value < level).length);
const probability = (p) => (p < 0.001 ? "p < .001" : `p = ${p.toFixed(3).replace(/^0/, "")}`);
const direction = (number) => (Math.abs(number) < 1e-9 ? "same" : number > 0 ? "gain" : "loss");

// The parts of a paired test as a bar: queries that are better, equal, worse.
function outcomeBar(test) {
  const total = Math.max(1, test.wins + test.losses + test.ties);
  const label = `${queries(test.wins)} better, ${count(test.ties)} equal, ${count(test.losses)} worse`;
  return element("span", { class: "outcome", role: "img", "aria-label": label, title: label },
    bar("gain", test.wins / total), bar("same", test.ties / total), bar("loss", test.losses / total));
}
