"use strict";
// The warnings, the curves over training, the flaw, and the table of all numbers.

const Overview = (() => {
  const CHARTS = [
    ["reward", "Reward", Show.number],
    ["accuracy", "Accuracy", Show.percent],
    ["length", "Length, tokens", Show.number],
    ["path_depth", "Path depth", Show.number],
    ["intermediate_proportion", "Intermediate proportion", Show.percent],
    ["shared_tokens", "Tokens with |λ| > 1", Show.percent],
    ["flat", "Flat groups", Show.percent],
    ["best_pushed_down", "Groups whose best is pushed down", Show.percent],
    ["frequent_share_grpo", "Gradient on frequent step", Show.percent],
  ];
  const VALIDATION = [
    ["eval_rewards/accuracy_reward/mean", "Validation accuracy", Show.percent],
    ["eval_reward", "Validation reward", Show.number],
  ];
  const FLAW = [
    {
      title: "The best one is pushed down",
      kind: "anti-exploitation",
      text: "Its beginning is shared with worse siblings, and their mean advantage is negative. Of the gradient on the best completion, this much pushes it down:",
      measures: ["best_share_down_grpo", "best_share_down_lambda"],
      show: Show.percent,
      extra: (means) => `In ${Show.percent(means.best_pushed_down)} of groups; ${Show.plural(means.best_tokens_down, "token")} of the best on average.`,
      rule: "Over groups with unequal rewards. Both push the same tokens down; λ-GRPO pushes them less.",
    },
    {
      title: "The frequent one takes over",
      kind: "anti-exploration",
      text: "A step that many completions take is pushed once for each of them, so rare better steps are crowded out. Share of a group's gradient on its most frequent step:",
      measures: ["frequent_share_grpo", "frequent_share_lambda"],
      show: Show.percent,
      rule: "Mean over groups that are not flat and have unequal rewards.",
    },
    {
      title: "How many terms share the gradient",
      kind: "effective number of tree terms",
      text: "How many of a group's unique tokens the gradient is effectively spread over (all of them, if each were pushed as hard as the next):",
      measures: ["effective_terms_grpo", "effective_terms_lambda"],
      show: Show.number,
      extra: (means) => `All groups have ${Show.plural(means.unique_tokens, "unique token")} on average.`,
      rule: "Mean over groups with unequal rewards. λ-GRPO evens out how often steps count, not their advantages, so either can be larger.",
    },
  ];
  const WHOLE = [1, 2, 5].flatMap((digit) => [0, 1, 2, 3, 4, 5, 6].map((power) => digit * 10 ** power)).sort((a, b) => a - b); // between ticks of steps
  let plots = [];

  function swatch(index) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("class", "run-swatch");
    svg.setAttribute("viewBox", "0 0 28 8");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [key, value] of Object.entries({ x1: 1, x2: 27, y1: 4, y2: 4, "stroke-width": 3, stroke: Colour.run(index), "stroke-dasharray": Colour.dash(index).join(" ") })) line.setAttribute(key, value);
    svg.append(line);
    svg.setAttribute("aria-hidden", "true");
    return svg;
  }

  function warnings(data) {
    const host = document.getElementById("warnings");
    const lost = data.left_out;
    const say = (text) => host.append(Show.append(Show.make("p", "warning"), text));
    if (lost.rows || lost.files) {
      say(`Left out as unusable: ${Show.plural(lost.rows, "row")} (${Show.plural(lost.groups, "whole group")}) and ${Show.plural(lost.files, "file")}. First: ${lost.examples[0]}`);
    }
    data.notes.forEach(say);
    if (data.runs.some((run) => run.tokens_from.some((from) => from.startsWith("words")))) {
      say("The rollouts hold text without token ids and no tokenizer was given: words are taken for tokens, so trees can differ in detail from those of training.");
    }
  }

  /** One line per run over all steps of a table that any run has. */
  function curves(data, table, measure) {
    const xs = [...new Set(table.step)].sort((a, b) => a - b);
    const place = new Map(xs.map((x, i) => [x, i]));
    const lines = data.runs.map(() => xs.map(() => null));
    const index = new Map(data.runs.map((run, i) => [run.name, i]));
    table.run.forEach((name, i) => {
      lines[index.get(name)][place.get(table.step[i])] = table[measure][i];
    });
    return [xs, ...lines];
  }

  /** What is drawn: of each measure its table, its name there, its title, how values are shown. */
  function drawn(data) {
    const charts = CHARTS.map((chart) => [data.steps, ...chart]);
    const validation = data.comparison?.validation ?? {};
    const known = VALIDATION.filter(([measure]) => measure in validation).map((chart) => [validation, ...chart]);
    return [charts[0], ...known, ...charts.slice(1)];
  }

  /** Running mean over `window` steps around each, where there is a value. */
  function smooth(line, window) {
    return line.map((value, i) => {
      if (value === null) return null;
      const near = line.slice(Math.max(0, i - window), i + window + 1).filter((other) => other !== null);
      return near.reduce((sum, other) => sum + other, 0) / near.length;
    });
  }

  function charts(data) {
    const host = document.getElementById("charts");
    plots.forEach((plot) => plot.destroy());
    plots = [];
    host.replaceChildren();
    const count = new Set(data.steps.step).size;
    const window = count > 120 ? Math.round(count / 80) : 0;
    document.getElementById("charts-note").textContent =
      count === 1
        ? `One training step, ${data.steps.step[0]}: its means.`
        : `Means of each training step${window ? `, faint, and of the ${2 * window + 1} steps around it` : ""}. Drag to zoom, double-click to undo.`;
    for (const [table, measure, title, show] of drawn(data)) {
      const values = curves(data, table, measure);
      const card = host.appendChild(Show.make("figure", "chart"));
      const head = card.appendChild(Show.make("figcaption"));
      head.append(Show.make("span", "chart-title", title));
      const live = head.appendChild(Show.make("span", "live"));
      live.append(...lastValues(values, show));
      if (values[0].length > 1) plots.push(chart(card, { title, values, show, live, window: table === data.steps ? window : 0 }));
    }
  }

  function chart(card, { title, values, show, live, window }) {
    const lines = values.slice(1);
    const body = card.appendChild(Show.make("div", "plot"));
    const style = getComputedStyle(document.documentElement);
    const [faint, line] = [style.getPropertyValue("--faint"), style.getPropertyValue("--line")];
    const axis = { stroke: faint, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "11px system-ui", gap: 4 };
    const points = (i) => ({ show: values[0].length < 40, size: 5, fill: Colour.run(i) });
    const series = lines.map((_, i) => ({ stroke: Colour.run(i), dash: Colour.dash(i), width: 1.75, spanGaps: true, points: points(i) }));
    const raw = lines.map((_, i) => ({ stroke: Colour.run(i), width: 1, alpha: 0.25, spanGaps: true, points: { show: false } }));
    const plot = new uPlot(
      {
        width: body.clientWidth || 300,
        height: 150,
        legend: { show: false },
        cursor: { sync: { key: "steps" }, points: { size: 6 }, y: false, drag: { x: true, y: false } },
        scales: { x: { time: false }, y: { range: valueRange } },
        axes: [{ ...axis, size: 26, space: 60, incrs: WHOLE }, { ...axis, size: 48, space: 34, values: (_, ticks, __, ___, step) => ticks.map((tick) => tickLabel(tick, step, show)) }],
        series: window ? [{}, ...raw, ...series.map((one) => ({ ...one, points: { show: false } }))] : [{}, ...series],
        hooks: {
          setCursor: [({ cursor }) => live.replaceChildren(...(cursor.left >= 0 && cursor.idx !== null ? valuesAt(values, cursor.idx, show) : lastValues(values, show)))],
        },
      },
      window ? [...values, ...lines.map((one) => smooth(one, window))] : values,
      body,
    );
    plot.over.setAttribute("role", "img");
    plot.over.setAttribute("aria-label", `${title}, ${values[0].length} steps. The numbers are in the table below.`);
    return plot;
  }

  /** As many decimals as tell neighbouring ticks apart. */
  function tickLabel(value, step, show) {
    const scale = show === Show.percent ? 100 : 1;
    const decimals = Math.max(0, Math.ceil(-Math.log10(step * scale) - 1e-9));
    const label = (value * scale).toFixed(Math.min(decimals + (decimals && !Number.isInteger(step * scale * 10 ** decimals) ? 1 : 0), 6));
    return scale === 100 ? `${label}%` : label.replace("-", "−");
  }

  function valueRange(_, low, high) {
    if (low === null) return [0, 1];
    const pad = Math.max((high - low) * 0.12, Math.abs(high) * 0.02, 1e-3);
    return [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
  }

  const dot = (index) => {
    const mark = Show.make("i", "dot");
    mark.style.background = Colour.run(index);
    return mark;
  };
  function valuesAt(values, at, show) {
    return [Show.make("span", "at", `step ${values[0][at]}`), ...values.slice(1).flatMap((line, i) => [dot(i), Show.make("b", "", show(line[at]))])];
  }
  function lastValues(values, show) {
    return values.slice(1).flatMap((line, i) => [dot(i), Show.make("b", "", show(line.findLast((value) => value !== null)))]);
  }

  function legend(data) {
    const host = document.getElementById("run-legend");
    host.replaceChildren(
      ...data.runs.map((run, i) => {
        const item = Show.append(Show.make("li"), run.name);
        item.prepend(swatch(i));
        return item;
      }),
    );
  }

  function flaw(data) {
    const host = document.getElementById("flaw");
    for (const card of FLAW) {
      const box = host.appendChild(Show.make("article", "card"));
      box.append(Show.make("p", "eyebrow", card.kind), Show.make("h3", "", card.title), Show.make("p", "note", card.text));
      const share = card.show === Show.percent; // a track is the whole; where there is none, the largest fills the row
      const most = share ? 1 : Math.max(...data.runs.flatMap((run) => card.measures.map((name) => run.means[name] ?? 0)), 1e-9);
      for (const run of data.runs) {
        if (data.runs.length > 1) box.append(Show.append(Show.make("p", "bar-run"), run.name));
        card.measures.forEach((name, i) => {
          const value = run.means[name];
          const row = box.appendChild(Show.make("div", "bar-row"));
          row.append(Show.make("span", "bar-name", i ? "λ-GRPO" : "GRPO"));
          const track = row.appendChild(Show.make("span", share ? "bar-track" : "bar-room"));
          const bar = track.appendChild(Show.make("span", `bar ${i ? "lambda" : "grpo"}`));
          bar.style.width = `${(100 * (value ?? 0)) / most}%`;
          row.append(Show.make("b", "bar-value", card.show(value)));
        });
        if (card.extra) box.append(Show.make("p", "note small", card.extra(run.means)));
      }
      box.append(Show.make("p", "note small rule", card.rule));
    }
  }

  /** The table is made when it is first opened: it can have thousands of rows. */
  function table(data) {
    const details = document.getElementById("numbers");
    details.addEventListener("toggle", () => {
      const host = details.querySelector(".table-wrap");
      if (!details.open || host.firstChild) return;
      const names = Object.keys(data.steps);
      const grid = Show.make("table");
      const head = grid.createTHead().insertRow();
      names.forEach((name) => head.append(Show.make("th", "", name.replaceAll("_", " "))));
      const body = grid.createTBody();
      data.steps.step.forEach((_, i) => {
        const row = body.insertRow();
        names.forEach((name) => {
          const value = data.steps[name][i];
          Show.append(row.insertCell(), typeof value === "string" ? value : name === "step" ? String(value) : Show.number(value));
        });
      });
      host.append(grid);
    });
  }

  function draw(data) {
    legend(data);
    charts(data);
  }

  function resize() {
    for (const plot of plots) plot.setSize({ width: plot.root.parentNode.clientWidth, height: 150 });
  }

  function start(data) {
    warnings(data);
    flaw(data);
    table(data);
    draw(data);
  }

  return { start, draw, resize, swatch, smooth, tickLabel, WHOLE };
})();
