// The first part (what was gained, and whether it is significant), and the parts on training and setup.

const LOOKS = [
  { label: "retriever", colour: "blue", marker: "o" },
  { label: "hybrid", colour: "green", marker: "^" },
  { label: "ranker", colour: "purple", marker: "D" },
  { label: "pipeline", colour: "vermilion", marker: "s" },
];
const RANKS = ["1", "2–3", "4–10", "below 10", "not found"];

function showResults(report, section) {
  const hero = element("div", { class: "card hero" });
  const matrix = element("div");
  const draw = () => {
    hero.replaceChildren(...heroOf(report));
    matrix.replaceChildren(...matrixOf(report));
  };
  report.listeners.push(draw);
  draw();
  section.append(...[hero,
    ...report.runs.filter((run) => run.served).map((run) => element("p", { class: "note served" }, `${report.runs.length > 1 ? `${run.label}: served` : "Served"}: ${run.served.reason}`)),
    element("div", { class: "grid two" }, rowsChart(report), ranksChart(report)),
    ...splitsOf(report).map((split) => metricsTable(report, split)),
    ...stageTests(report), matrix,
    ...report.runs.filter((run) => run.otherTexts).map((run) => element("p", { class: "note" }, `The retriever of the last row of ${run.label}. ${run.otherTexts}`)),
    element("p", { class: "note legend-text" }, `${report.legend} The p values are not corrected for multiple comparisons.`)].filter(Boolean));
}

function heroOf(report) {
  const { before, after, primary_metric: primaryMetric } = report, name = report.names[primaryMetric];
  const test = report.test(before, after);
  const change = report.mean(after, primaryMetric) - report.mean(before, primaryMetric);
  const others = report.metrics.filter((metric) => metric !== primaryMetric);
  const alone = report.systems.length < 2;
  return [
    element("div", { class: "headline" },
      element("p", { class: "eyebrow" }, `${name} on ${report.browser.split}, ${queries(report.collection.queries)}`),
      element("p", { class: "figures" },
        !alone && [element("span", { class: "number before" }, three(report.mean(before, primaryMetric))), element("span", { class: "arrow" }, "→")],
        element("span", { class: "number" }, three(report.mean(after, primaryMetric))),
        !alone && element("span", { class: `change ${direction(change)}` }, signed(change))),
      element("p", { class: "names" }, !alone && [report.name(before), element("span", { class: "quiet" }, " → ")], report.name(after))),
    test && element("div", { class: "verdict" },
      element("p", {}, element("b", {}, `${probability(test.p_value)} ${mark(test)}`.trim()),
        element("span", { class: "quiet" }, test.p_value >= 0.05 ? " – not significant" : test.difference < 0 ? " – significantly worse" : " – significantly better")),
      outcomeBar(test),
      element("p", { class: "counts" },
        element("a", { href: "#queries", class: "gain", "data-filter": "gain" }, `▲ ${count(test.wins)} better`),
        element("a", { href: "#queries", class: "same", "data-filter": "same" }, `${count(test.ties)} equal`),
        element("a", { href: "#queries", class: "loss", "data-filter": "loss" }, `▼ ${count(test.losses)} worse`))),
    others.length > 0 && element("dl", { class: "others" }, others.map((metric) => {
      const delta = report.mean(after, metric) - report.mean(before, metric);
      return element("div", {}, element("dt", {}, report.names[metric]),
        element("dd", {}, !alone && `${three(report.mean(before, metric))} → `, three(report.mean(after, metric)), " ", !alone && element("span", { class: direction(delta) }, signed(delta))));
    })),
  ].filter(Boolean);
}

const rowName = (report, run, row) => (report.runs.length > 1 ? `${run.label} · ${row}` : row);

function rowsChart(report) {
  const { split } = report.browser, primaryMetric = report.primary_metric;
  const rows = report.runs.flatMap((run) => Object.entries(run.metrics).filter(([, splits]) => splits[split]).map(([row, splits]) => ({
    label: rowName(report, run, row),
    values: Object.fromEntries(LOOKS.map(({ label }) => [label, (splits[split][label] || {})[primaryMetric]])),
  })));
  return dotChart(`${report.names[primaryMetric]}, row by row`, rows, LOOKS);
}

function ranksChart(report) {
  const rows = report.systems.map(({ first }, number) => {
    const counts = [0, 0, 0, 0, 0];
    for (const rank of first) counts[rank === 0 ? 4 : rank === 1 ? 0 : rank <= 3 ? 1 : rank <= 10 ? 2 : 3]++;
    return { label: report.name(number), counts };
  });
  return shareBars("Rank of the first positive, shares of the queries", rows, RANKS);
}

function splitsOf(report) {
  const found = new Set([report.browser.split]);
  for (const run of report.runs) for (const splits of Object.values(run.metrics)) for (const split of Object.keys(splits)) found.add(split);
  return [...found];
}

function metricsTable(report, split) {
  const rows = report.runs.flatMap((run) => Object.entries(run.metrics).filter(([, splits]) => splits[split])
    .map(([row, splits]) => ({ run, row, systems: splits[split], tests: ((run.tests[row] || {})[split]) || {} })));
  const columns = LOOKS.flatMap(({ label }) => Object.keys(report.names).filter((metric) => rows.some((row) => known((row.systems[label] || {})[metric])))
    .map((metric) => ({ system: label, metric })));
  const best = columns.map(({ system, metric }) => Math.max(...rows.map((row) => (row.systems[system] || {})[metric]).filter(known)));
  const groups = LOOKS.map(({ label }) => [label, columns.filter((column) => column.system === label).length]).filter(([, width]) => width);
  const first = (number) => number === 0 || columns[number - 1].system !== columns[number].system;
  return element("div", { class: "card" },
    element("h2", {}, split === report.browser.split ? `All rows, ${split}` : `Also measured: ${split}`),
    element("div", { class: "scroll" }, element("table", {},
      element("thead", {},
        element("tr", {}, element("td"), groups.map(([label, width]) => element("th", { colspan: width, scope: "colgroup", class: "group" }, SYSTEM_NAMES[label] || label))),
        element("tr", {}, element("th", { scope: "col" }, "row"), columns.map(({ metric }, i) => element("th", { scope: "col", class: first(i) ? "number first" : "number" }, report.names[metric], element("sup"))))),
      element("tbody", {}, rows.map(({ run, row, systems, tests }) => element("tr", {},
        element("th", { scope: "row" }, rowName(report, run, row), run.served && run.served.row === row && element("span", { class: "quiet" }, ` (${SYSTEM_NAMES[run.served.system] || run.served.system} served)`)),
        columns.map(({ system, metric }, i) => {
          const value = (systems[system] || {})[metric], test = metric === run.primary_metric ? tests[system] : null;
          return element("td", { class: `number${first(i) ? " first" : ""}${value === best[i] && rows.length > 1 ? " best" : ""}` }, three(value),
            element("sup", { title: test && probability(test.p_value) }, test ? mark(test) : ""));
        })))))),
    notesOf(report, split));
}

// What limits the numbers of a split.
function notesOf(report, split) {
  const found = report.runs.flatMap((run) => (run.notes[split] || []).map((note) => (report.runs.length > 1 && run.notes[split] !== report.runs[0].notes[split] ? `${run.label}: ${note}` : note)));
  return [...new Set(found)].map((note) => element("p", { class: "note" }, note));
}

// As in the terminal: each retriever and each pipeline against that of the row before, and each pipeline and the
// retriever with BM25 against the retriever. Runs may have tested different metrics: one table for each metric.
function stageTests(report) {
  const metrics = [...new Set(report.runs.map((run) => run.primary_metric))];
  return metrics.map((metric) => testsTable(report, metric)).filter(Boolean);
}

function testsTable(report, metric) {
  const { split } = report.browser, lines = [];
  for (const run of report.runs.filter((one) => one.primary_metric === metric)) {
    const rows = Object.keys(run.metrics).filter((row) => run.metrics[row][split]);
    let withPipeline = null;
    rows.forEach((row, number) => {
      const tests = ((run.tests[row] || {})[split]) || {};
      if (tests.retriever) lines.push([`${rowName(report, run, row)} over ${rows[number - 1]}`, "retriever", tests.retriever]);
      if (tests.hybrid) lines.push([`${rowName(report, run, row)}`, "with BM25 over without", tests.hybrid]);
      if (tests.pipeline_before) lines.push([`${rowName(report, run, row)} over ${withPipeline}`, "pipeline", tests.pipeline_before]);
      if (tests.pipeline) lines.push([`${rowName(report, run, row)}`, "pipeline over retriever", tests.pipeline]);
      if (run.metrics[row][split].pipeline) withPipeline = row;
    });
  }
  if (!lines.length) return null;
  return element("div", { class: "card" }, element("h2", {}, `What each stage changed, ${report.names[metric]}`),
    element("div", { class: "scroll" }, element("table", {},
      element("thead", {}, element("tr", {}, ["row", "system", "change", "significance", "better", "equal", "worse", ""].map((name, i) => element("th", { scope: "col", class: i > 1 && i !== 3 && i < 7 ? "number" : null }, name)))),
      element("tbody", {}, lines.map(([row, system, test]) => element("tr", {},
        element("th", { scope: "row" }, row), element("td", { class: "nowrap" }, system),
        element("td", { class: `number ${direction(test.difference)}` }, signed(test.difference)),
        element("td", { class: "nowrap" }, `${probability(test.p_value)} ${mark(test)}`),
        element("td", { class: "number" }, count(test.wins)), element("td", { class: "number" }, count(test.ties)), element("td", { class: "number" }, count(test.losses)),
        element("td", { class: "wide" }, outcomeBar(test))))))));
}

// Every system against every other; a click on a cell chooses the pair.
function matrixOf(report) {
  const numbers = report.systems.map((_, i) => i);
  if (!Object.keys(report.browser.tests).length || numbers.length < 3) return [];
  const most = Math.max(...numbers.flatMap((j) => numbers.map((i) => (i === j ? 0 : Math.abs(report.test(i, j).difference))))) || 1;
  return [element("div", { class: "card" },
    element("h2", {}, `Every system against every other, ${report.names[report.primary_metric]}`),
    element("p", { class: "note" }, "The row's system minus the column's. Click a cell to compare the two throughout this report."),
    element("div", { class: "scroll" }, element("table", { class: "matrix" },
      element("thead", {}, element("tr", {}, element("td"), numbers.map((i) => element("th", { scope: "col", title: report.name(i) }, element("span", {}, report.name(i)))))),
      element("tbody", {}, numbers.map((j) => element("tr", {}, element("th", { scope: "row" }, report.name(j)), numbers.map((i) => {
        if (i === j) return element("td", { class: "none" }, "·");
        const test = report.test(i, j), chosen = i === report.before && j === report.after;
        const cell = element("button", { type: "button", class: `cell ${direction(test.difference)}`, "aria-pressed": String(chosen),
          title: `${report.name(j)} over ${report.name(i)}: ${signed(test.difference)}, ${probability(test.p_value)}`,
          onclick: () => report.compare(i, j) }, signed(test.difference), element("sup", {}, mark(test)));
        cell.style.setProperty("--strength", (0.06 + 0.3 * Math.abs(test.difference) / most).toFixed(3));
        return element("td", {}, cell);
      })))))))];
}

function showTraining(report, section) {
  for (const run of report.runs) {
    if (report.runs.length > 1) section.append(element("h2", { class: "run" }, run.label));
    section.append(element("div", { class: "grid two" }, run.charts.map(lineChart), timesChart(run)));
  }
}

function timesChart(run) {
  const most = Math.max(...run.times.map((time) => time.seconds || 0)) || 1;
  const total = run.times.reduce((sum, time) => sum + (time.seconds || 0), 0);
  const phases = [...new Set(run.times.flatMap((time) => Object.keys(time.phases)))];
  const shade = (phase) => `t-${phases.indexOf(phase) % 6}`;
  const swatch = (look, text) => element("li", {}, element("i", { class: `swatch ${look}` }), text);
  return element("figure", { class: "card chart" }, element("figcaption", {}, `Time per stage, ${duration(total)} in all`),
    element("ul", { class: "legend" }, phases.map((phase) => swatch(shade(phase), phase)), swatch("t-rest", phases.length ? "other work: loading, tokenising, scoring" : "this run did not log phases")),
    element("div", { class: "times" }, run.times.map((time) => {
      const parts = Object.entries(time.phases);
      const rest = Math.max(0, (time.seconds || 0) - parts.reduce((sum, [, spent]) => sum + spent, 0));
      const work = known(time.steps) ? counted(time.steps, "step") : known(time.lists) ? counted(time.lists, "list") : "";
      return [element("span", { class: "label", title: time.stage }, time.stage, element("small", {}, time.trainer)),
        element("span", { class: "stack", title: parts.map(([phase, spent]) => `${phase} ${duration(spent)}`).join(", ") },
          parts.map(([phase, spent]) => bar(shade(phase), spent / most)), bar("t-rest", rest / most)),
        element("span", { class: "value" }, duration(time.seconds), element("small", {}, work))];
    })),
    run.minutes && element("p", { class: "note" }, run.minutes));
}

function showSetup(report, section) {
  section.append(element("div", { class: "card" }, element("h2", {}, "What this report was made from"),
    definitions({ collection: `${report.collection.name}: ${counted(report.collection.passages, "passage")}`, split: `${report.browser.split}: ${queries(report.collection.queries)}`,
      "this page": `${(report.size / 1e6).toFixed(1)} MB, ${counted(report.browser.passages.id.length, "passage")} with their texts cut at ${report.characters} characters`, "hf-ar2": report.version })));
  for (const run of report.runs) {
    section.append(element("div", { class: "card" }, element("h2", {}, run.label), definitions(run.setup),
      run.packages && element("h3", {}, "Packages"), run.packages && definitions(run.packages),
      element("h3", {}, "Recipe, as it was run"), element("pre", { class: "recipe", tabindex: 0 }, run.recipe)));
  }
}

function definitions(values) {
  return element("dl", { class: "definitions" }, Object.entries(values).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}
