// Unpacks the data, draws each part when it is first shown, and follows the address.

const PARTS = ["results", "queries", "training", "setup"];

async function start() {
  const status = document.getElementById("status"), data = document.getElementById("data");
  const size = document.documentElement.outerHTML.length;
  try {
    const report = new Report(await unpack(data.textContent));
    report.size = size;
    choosePair(report);
    const where = `${report.collection.name} · ${counted(report.collection.passages, "passage")} · ${report.browser.split}, ${queries(report.collection.queries)}`;
    document.getElementById("where").textContent = where;
    status.hidden = true;
    follow(report);
  } catch (error) {
    status.textContent = `This report cannot be shown: ${error.message}`;
    throw error;
  }
}

function choosePair(report) {
  const selects = ["before", "after"].map((name) => document.getElementById(name));
  selects.forEach((select) => {
    select.append(...report.systems.map((_, i) => option(i, report.name(i), false)));
    select.addEventListener("change", () => report.compare(...selects.map((one) => Number(one.value))));
  });
  const show = () => { selects[0].value = report.before; selects[1].value = report.after; };
  report.listeners.push(show);
  show();
  document.getElementById("swap").addEventListener("click", () => report.compare(report.after, report.before));
  document.getElementById("pair").hidden = report.systems.length < 2;
}

// A typed address may contain a % that starts no escape sequence.
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function follow(report) {
  const drawn = {};
  const sections = Object.fromEntries(PARTS.map((part) => [part, document.getElementById(part)]));
  const draw = {
    results: () => showResults(report, sections.results),
    queries: () => new QueryBrowser(report, sections.queries),
    training: () => showTraining(report, sections.training),
    setup: () => showSetup(report, sections.setup),
  };
  const show = () => {
    const [wanted, id] = location.hash.slice(1).split("/", 2), part = PARTS.includes(wanted) ? wanted : "results";
    const changed = sections[part].hidden;
    for (const name of PARTS) sections[name].hidden = name !== part;
    for (const link of document.querySelectorAll("#tabs a")) link.setAttribute("aria-current", link.hash === `#${part}` ? "page" : "false");
    document.body.dataset.part = part;
    if (!(part in drawn)) drawn[part] = draw[part]() || true;
    if (changed) scrollTo(0, 0);
    if (part === "queries" && id) drawn.queries.find(decoded(id));
  };
  addEventListener("hashchange", show);
  show();
  // A click on a count of better or worse queries shows these queries.
  sections.results.addEventListener("click", (event) => {
    const link = event.target.closest("[data-filter]");
    if (!link) return;
    if (!drawn.queries) drawn.queries = draw.queries();
    drawn.queries.only(link.dataset.filter);
  });
  addEventListener("keydown", (event) => {
    const busy = event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey;
    if (busy || document.body.dataset.part !== "queries") return;
    if (event.key === "/") { event.preventDefault(); drawn.queries.search.focus(); drawn.queries.search.select(); }
    if (event.key === "j" || event.key === "k") drawn.queries.pressed(event);
  });
}

start();
