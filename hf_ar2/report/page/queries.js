// The query browser: a list with only the visible rows in the page, and the two rankings of one query.

const ROW = 76, OVERSCAN = 6, MANY_POSITIVES = 5;
const ORDERS = {
  gain: ["largest gain", (a) => -a.delta],
  loss: ["largest loss", (a) => a.delta],
  worst: ["worst after", (a) => a.after],
  best: ["best after", (a) => -a.after],
  given: ["collection order", (a) => a.number],
};
const KINDS = {
  all: ["All", () => true],
  gain: ["▲ Better", (a) => a.kind === "gain"],
  loss: ["▼ Worse", (a) => a.kind === "loss"],
  same: ["Equal", (a) => a.kind === "same"],
  missed: ["Missed", (a) => !a.found],
};

class QueryBrowser {
  constructor(report, section) {
    this.report = report;
    this.section = section;
    this.metric = report.primary_metric;
    this.order = "gain";
    this.kind = "all";
    this.words = [];
    this.selected = null;
    this.side = 1;
    this.whole = false;
    this.lower = report.browser.queries.text.map((text, i) => `${text}\n${report.browser.queries.id[i]}`.toLowerCase());
    this.build();
    report.listeners.push(() => this.update());
    this.update();
  }

  build() {
    const { report } = this;
    this.search = element("input", { type: "search", id: "search", placeholder: "Search queries and ids", "aria-label": "Search queries and ids", autocomplete: "off", spellcheck: "false",
      oninput: () => { this.words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean); this.choose(); },
      onkeydown: (event) => {
        if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); this.scroller.focus(); }
        if (event.key === "Escape") { this.search.value = ""; this.words = []; this.choose(); }
      } });
    this.metricSelect = element("select", { "aria-label": "Metric", onchange: () => { this.metric = this.metricSelect.value; this.update(); } },
      report.metrics.map((metric) => option(metric, report.names[metric], metric === this.metric)));
    this.orderSelect = element("select", { id: "order", "aria-label": "Order", onchange: () => { this.order = this.orderSelect.value; this.choose(); } },
      Object.entries(ORDERS).map(([key, [text]]) => option(key, text, key === this.order)));
    this.chips = element("div", { class: "chips", role: "group", "aria-label": "Which queries" });
    this.summary = element("p", { class: "note summary", "aria-live": "polite" });
    this.space = element("div", { class: "space" });
    this.scroller = element("div", { id: "list", class: "scroller", role: "listbox", tabindex: 0, "aria-label": "Queries",
      onscroll: () => requestAnimationFrame(() => this.drawRows()), onkeydown: (event) => this.pressed(event) }, this.space);
    this.detail = element("article", { id: "detail", "aria-live": "off", tabindex: -1 });
    this.section.append(
      element("aside", { class: "side" },
        element("div", { class: "tools" }, this.search, element("div", { class: "selects" }, this.metricSelect, this.orderSelect), this.chips, this.summary),
        this.scroller,
        element("p", { class: "note keys" }, key("/"), " search ", key("↑"), key("↓"), " or ", key("k"), key("j"), " next query")),
      this.detail);
    new ResizeObserver(() => this.drawRows()).observe(this.scroller);
    new ResizeObserver(() => this.drawLinks()).observe(this.detail);
  }

  // Values of the chosen pair and metric.
  update() {
    const { report } = this, before = report.systems[report.before], after = report.systems[report.after];
    const a = before.values[this.metric], b = after.values[this.metric], { top } = report;
    this.entries = Array.from(a, (value, number) => {
      const delta = b[number] - value;
      const found = [before.first[number], after.first[number]].some((rank) => rank > 0 && rank <= top);
      return { number, before: value, after: b[number], delta, kind: direction(delta), found };
    });
    this.largest = this.entries.reduce((most, entry) => Math.max(most, Math.abs(entry.delta)), 0) || 1;
    this.choose(this.scroller.clientHeight > 0);
  }

  // The listed queries, in order; from the top, unless the query that is shown should stay.
  choose(stay) {
    const said = this.entries.filter(({ number }) => this.words.every((word) => this.lower[number].includes(word)));
    this.chips.replaceChildren(...Object.entries(KINDS).map(([kind, [text, belongs]]) =>
      element("button", { type: "button", class: `chip ${kind}`, "data-kind": kind, "aria-pressed": String(kind === this.kind),
        title: kind === "missed" ? "no positive in either top 10" : null,
        onclick: () => this.only(kind) }, `${text} `, element("b", {}, count(said.filter(belongs).length)))));
    const by = ORDERS[this.order][1];
    this.shown = said.filter(KINDS[this.kind][1]).sort((x, y) => by(x) - by(y) || x.number - y.number);
    this.summary.textContent = this.shown.length === this.entries.length ? queries(this.shown.length) : `${count(this.shown.length)} of ${queries(this.entries.length)}`;
    this.space.style.height = `${Math.max(1, this.shown.length) * ROW}px`;
    if (!stay) this.scroller.scrollTop = 0;
    this.select(stay ? this.shown.findIndex((entry) => entry.number === this.selected) : 0);
  }

  // The queries of one kind; better and worse ones start at the largest change.
  only(kind) {
    this.kind = kind;
    if (kind === "gain" || kind === "loss") this.orderSelect.value = this.order = kind;
    this.choose();
  }

  select(place) {
    this.place = Math.max(0, Math.min(this.shown.length - 1, place));
    const entry = this.shown[this.place], top = this.place * ROW, { scrollTop, clientHeight } = this.scroller;
    this.selected = entry ? entry.number : null;
    if (top < scrollTop) this.scroller.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.scroller.scrollTop = top + ROW - clientHeight;
    this.drawRows();
    this.drawDetail(entry);
  }

  // Select, and put the query into the address.
  go(place) {
    this.select(place);
    if (this.selected !== null) history.replaceState(null, "", `#queries/${encodeURIComponent(this.report.browser.queries.id[this.selected])}`);
  }

  find(id) {
    const number = this.report.browser.queries.id.indexOf(id);
    if (number < 0 || number === this.selected) return;
    if (!this.shown.some((entry) => entry.number === number)) { this.kind = "all"; this.words = []; this.search.value = ""; this.choose(); }
    this.select(this.shown.findIndex((entry) => entry.number === number));
  }

  pressed(event) {
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / ROW) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    this.go(this.place + moves[event.key]);
  }

  // Only the visible rows, and a few more, are in the page.
  drawRows() {
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / ROW) - OVERSCAN);
    const last = Math.min(this.shown.length, Math.ceil((this.scroller.scrollTop + this.scroller.clientHeight) / ROW) + OVERSCAN);
    if (!this.shown.length) {
      this.space.replaceChildren(element("p", { class: "empty" }, "No query matches."));
      this.scroller.removeAttribute("aria-activedescendant");
      return;
    }
    this.space.replaceChildren(...this.shown.slice(first, last).map((entry, i) => this.row(entry, first + i)));
    if (this.place >= first && this.place < last) this.scroller.setAttribute("aria-activedescendant", `q-${this.place}`);
    else this.scroller.removeAttribute("aria-activedescendant");
  }

  row(entry, place) {
    const { report } = this, a = report.systems[report.before].first[entry.number], b = report.systems[report.after].first[entry.number];
    const node = element("div", { class: "row", id: `q-${place}`, role: "option", "aria-selected": String(place === this.place), "aria-setsize": this.shown.length, "aria-posinset": place + 1,
      onclick: () => { this.go(place); if (getComputedStyle(this.section).display === "block") this.detail.scrollIntoView(); } },
      element("p", { class: "text", dir: "auto" }, report.browser.queries.text[entry.number]),
      element("p", { class: "move" },
        element("span", { class: "ranks" }, rankText(a), " → ", rankText(b)),
        element("span", { class: `meter ${entry.kind}` }, bar("", Math.abs(entry.delta) / this.largest)),
        element("span", { class: `delta ${entry.kind}` }, signed(entry.delta))));
    node.style.transform = `translateY(${place * ROW}px)`;
    return node;
  }

  drawDetail(entry) {
    if (!entry) { this.detail.replaceChildren(element("p", { class: "empty" }, "No query matches the search and the filter.")); return; }
    const { report } = this, { browser } = report, { number } = entry;
    const pair = [report.before, report.after];
    this.lists = pair.map((system, side) => this.ranking(system, number, side, report.systems[pair[1 - side]]));
    this.links = shape("svg", { class: "links", "aria-hidden": "true" });
    this.detail.replaceChildren(
      element("header", {},
        element("p", { class: "eyebrow" }, `Query ${browser.queries.id[number]}`),
        element("h2", { dir: "auto" }, browser.queries.text[number]),
        element("p", { class: "facts" },
          element("span", {}, `${report.names[this.metric]} ${three(entry.before)} → ${three(entry.after)} `, element("b", { class: entry.kind }, signed(entry.delta))),
          element("span", {}, `first positive: ${rankWord(report.systems[pair[0]].first[number])} → ${rankWord(report.systems[pair[1]].first[number])}`))),
      ...this.positivesOf(number, pair),
      this.switches(),
      element("div", { class: this.whole ? "lists whole" : "lists", "data-side": this.side }, this.lists[0], this.links, this.lists[1]));
    this.detail.scrollTop = 0;
    this.drawLinks();
  }

  // Passages in full or in two lines; in a narrow window, also which ranking is shown.
  switches() {
    const lists = () => this.detail.querySelector(".lists");
    const group = element("span", { class: "sides", role: "group", "aria-label": "Which ranking" }, ["Before", "After"].map((text, side) =>
      element("button", { type: "button", class: "chip", "aria-pressed": String(side === this.side), onclick: () => {
        this.side = side;
        lists().dataset.side = side;
        [...group.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === side)));
      } }, text)));
    const whole = element("button", { type: "button", class: "chip", id: "whole", "aria-pressed": String(this.whole), onclick: () => {
      this.whole = !this.whole;
      lists().classList.toggle("whole", this.whole);
      whole.setAttribute("aria-pressed", String(this.whole));
      this.drawLinks();
    } }, "Passages in full");
    return element("p", { class: "switches" }, group, whole);
  }

  // The judged positives, including those outside both top 10s.
  positivesOf(number, pair) {
    const { positives, passages } = this.report.browser, start = positives.offsets[number], end = positives.offsets[number + 1];
    if (start === end) return [];
    const rankOf = (system, i) => this.report.systems[system].positive_ranks[i];
    const places = Array.from({ length: end - start }, (_, i) => start + i).sort((i, j) => (rankOf(pair[1], i) || 1e9) - (rankOf(pair[1], j) || 1e9));
    const lines = places.map((i) => {
      const passage = positives.passages[i], [a, b] = pair.map((system) => rankOf(system, i));
      return element("li", { "data-passage": passage },
        element("span", { class: "moved" }, `${rankText(a)} → ${rankText(b)}`),
        element("span", { class: "what", dir: "auto" }, passages.title[passage] && element("b", {}, passages.title[passage], " "), passages.text[passage]));
    });
    return [element("details", { class: "positives", open: lines.length <= 2 },
      element("summary", {}, lines.length === 1 ? "The one judged positive" : `${count(lines.length)} judged positives`),
      element("ol", {}, lines.slice(0, MANY_POSITIVES), lines.length > MANY_POSITIVES && element("li", {}, element("button", { type: "button", class: "chip",
        onclick: (event) => event.target.closest("ol").replaceChildren(...lines) }, `show the other ${count(lines.length - MANY_POSITIVES)}`))))];
  }

  ranking(system, number, side, other) {
    const { report } = this, found = report.systems[system], { top } = report;
    const slice = (array) => array.subarray(number * top, (number + 1) * top);
    const list = slice(found.top), theirs = slice(other.top), columns = { retriever: slice(found.retriever), ranker: slice(found.ranker) };
    const ranked = columns.ranker.some((value) => !Number.isNaN(value));
    const names = ranked ? ["retriever", "ranker"] : ["retriever"];
    const ranges = names.map((name) => { const values = columns[name].filter((value) => !Number.isNaN(value)); return [Math.min(...values), Math.max(...values)]; });
    const hits = Array.from(list).map((passage, i) => passage !== report.none && this.hit(passage, i, side, found, number, theirs.indexOf(passage),
      names.map((name, n) => [name, columns[name][i], ranges[n]])));
    return element("section", { class: "ranking", "aria-label": side ? "After" : "Before" },
      element("h3", {}, element("span", { class: "eyebrow" }, side ? "After" : "Before"), element("span", { class: "system" }, report.name(system))),
      element("ol", {}, hits));
  }

  hit(passage, i, side, system, number, theirs, scores) {
    const { passages } = this.report.browser, relevance = system.relevance[number * this.report.top + i];
    const moved = theirs < 0 ? (side ? "new" : "out") : theirs === i ? "=" : side ? (theirs > i ? `▲${theirs - i}` : `▼${i - theirs}`) : "";
    const why = { new: "not in the top 10 before", out: "not in the top 10 after", "=": "same rank as before" }[moved] || "change of rank";
    const text = element("p", { class: "text", dir: "auto" }, passages.text[passage]);
    const node = element("li", { class: relevance ? "hit positive" : "hit", "data-passage": passage },
      element("div", { class: "rank" }, element("b", {}, i + 1), moved && (side || theirs < 0) && element("span", { class: `moved ${moved[0] === "▲" || moved === "new" ? "up" : moved[0] === "▼" || moved === "out" ? "down" : ""}`, title: why }, moved)),
      element("div", { class: "body" },
        element("p", { class: "title" }, relevance > 0 && element("span", { class: "badge" }, relevance > 1 ? `✓ positive, grade ${relevance}` : "✓ positive"),
          passages.title[passage] && element("b", { dir: "auto" }, passages.title[passage]), element("code", { title: passages.id[passage] }, passages.id[passage])),
        text),
      element("dl", { class: "scores" }, scores.map(([name, value, [low, high]]) => element("div", { class: name }, element("dt", {}, name), element("dd", {}, score(value)),
        Number.isFinite(value) && element("span", { class: "meter" }, bar("", high > low ? (value - low) / (high - low) : 1))))));
    node.addEventListener("click", () => { if (!String(getSelection())) { node.classList.toggle("open"); this.drawLinks(); } });
    node.addEventListener("pointerenter", () => this.light(passage));
    node.addEventListener("pointerleave", () => this.light(null));
    return node;
  }

  // Highlights the same passage on both sides.
  light(passage) {
    for (const node of this.detail.querySelectorAll("[data-passage]")) node.classList.toggle("lit", node.dataset.passage === String(passage));
  }

  // A curve from where a passage was to where it is.
  drawLinks() {
    if (!this.links || !this.links.isConnected) return;
    const box = this.links.getBoundingClientRect(), [left, right] = this.lists.map((list) => [...list.querySelectorAll("li")]);
    const middle = (node) => { const place = node.getBoundingClientRect(); return place.top + Math.min(28, place.height / 2) - box.top; };
    this.links.replaceChildren(...left.flatMap((node) => {
      const partner = right.find((other) => other.dataset.passage === node.dataset.passage);
      if (!partner || !box.width) return [];
      const y1 = middle(node), y2 = middle(partner), half = box.width / 2;
      return shape("path", { d: `M0,${y1} C${half},${y1} ${half},${y2} ${box.width},${y2}`, "data-passage": node.dataset.passage, class: node.classList.contains("positive") ? "positive" : null });
    }));
  }
}

const key = (name) => element("kbd", {}, name);
const rankText = (rank) => (rank ? `#${rank}` : "–");
const rankWord = (rank) => (rank ? `rank ${rank}` : "not found");
