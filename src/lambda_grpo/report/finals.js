"use strict";
// The table of final figures: a row per measure, a column per run, and a picture of the intervals.

const Finals = (() => {
  const [WIDTH, LINE] = [220, 13];
  const at = (id) => document.getElementById(id);
  let data;

  function shown(figure, value) {
    if (figure.percent) return `${(100 * value).toFixed(1).replace("-", "−")}%`;
    const digits = figure.measure.includes("reward") ? 3 : Math.abs(value) < 10 ? 2 : 1;
    return value.toFixed(digits).replace("-", "−");
  }

  /** A difference; of shares in percentage points. */
  function apart(figure, value) {
    const text = figure.percent ? (100 * value).toFixed(1) : shown(figure, value).replace("−", "-");
    return Number(text) === 0 ? text.replace("-", "") : (value > 0 ? "+" : "") + text.replace("-", "−");
  }

  function interval(estimate, show) {
    return estimate.low === null || estimate.low === undefined ? "" : `[${show(estimate.low)}, ${show(estimate.high)}]`;
  }

  function cell(figure, run) {
    const box = Show.make("td");
    const estimate = figure.runs[run];
    if (!estimate) {
      box.textContent = "–";
      return box;
    }
    box.append(Show.make("b", "final-mean", shown(figure, estimate.mean)), " ");
    box.append(Show.make("span", "final-interval", interval(estimate, (value) => shown(figure, value))));
    if (figure.before) box.append(Show.make("span", "final-more", figure.before[run] ? `before: ${shown(figure, figure.before[run].mean)}` : ""));
    const difference = figure.differences?.[run];
    if (difference) box.append(versus(figure, difference));
    return box;
  }

  function versus(figure, difference) {
    const clear = difference.low !== null && (difference.low > 0 || difference.high < 0);
    const more = Show.make("span", `final-more${clear ? " clear" : ""}`);
    Show.append(more, `${apart(figure, difference.mean)} ${interval(difference, (value) => apart(figure, value))}${figure.percent ? " points" : ""} to ${Show.cut(data.runs[0].name, 30)}`);
    more.title = `The mean difference over ${Show.plural(difference.problems, "problem")} that both runs met${clear ? "; its interval leaves zero out" : ""}`;
    return more;
  }

  function mark(tag, attributes, parent) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent?.append(made);
    return made;
  }

  /** Means as dots, intervals as lines, all runs on one axis. */
  function picture(figure) {
    const values = figure.runs.flatMap((run) => (run ? [run.mean, run.low ?? run.mean, run.high ?? run.mean] : []));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const x = (value) => 8 + ((WIDTH - 16) * (value - low)) / (high - low || 1);
    const svg = mark("svg", { viewBox: `0 0 ${WIDTH} ${LINE * figure.runs.length + 4}`, class: "final-picture", "aria-hidden": "true" });
    figure.runs.forEach((run, i) => {
      if (!run) return;
      const [y, stroke] = [LINE * (i + 0.5) + 2, Colour.run(i)];
      if (typeof run.low === "number") mark("line", { x1: x(run.low), x2: x(run.high), y1: y, y2: y, stroke, "stroke-width": 2.5, "stroke-linecap": "round" }, svg);
      mark("circle", { cx: x(run.mean), cy: y, r: 4.2, fill: stroke }, svg);
    });
    return svg;
  }

  function part(grid, title, figures) {
    if (!figures.length) return;
    const body = grid.createTBody();
    const head = body.insertRow().appendChild(Show.make("th", "final-part", title));
    head.colSpan = data.runs.length + 2;
    head.scope = "colgroup";
    for (const figure of figures) {
      const row = body.insertRow();
      row.append(Object.assign(Show.make("th", "", figure.title), { scope: "row" }), ...data.runs.map((_, run) => cell(figure, run)));
      row.appendChild(Show.make("td", "final-where")).append(picture(figure));
    }
  }

  function draw(content) {
    data = content;
    const { figures, window } = data.comparison;
    const grid = at("finals");
    grid.replaceChildren();
    const head = grid.createTHead().insertRow();
    head.append(Show.make("th"));
    data.runs.forEach((run, i) => {
      const column = head.appendChild(Object.assign(Show.make("th"), { scope: "col" }));
      const name = column.appendChild(Show.append(Show.make("span", "run-name"), run.name));
      name.prepend(Overview.swatch(i));
    });
    head.append(Show.make("th", "final-where"));
    const before = new Map(figures.before.map((figure) => [figure.measure, figure.runs]));
    part(grid, "After training, on the test problems", figures.after.map((figure) => ({ ...figure, before: before.get(figure.measure) })));
    const steps = window ? (window[0] === window[1] ? `In step ${window[0]} of training` : `In steps ${window[0]} to ${window[1]} of training, the last fifth of those that all runs have`) : "In the last fifth of each run's steps";
    part(grid, steps, figures.training);
  }

  return { draw };
})();
