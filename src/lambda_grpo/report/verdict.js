"use strict";
// What the page opens with: of each run two sentences, and a picture of how much λ-GRPO changes over training.

const Verdict = (() => {
  const LINES = [
    ["shared_tokens", "tokens that it weighs less", "--grpo"],
    ["push_removed", "push that it takes off", "--lambda"],
  ];
  const HEIGHT = 190;
  let plots = [];

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

  /** The steps of one run: [steps, values of each line]. */
  function ofRun(data, run) {
    const rows = data.steps.step.map((_, i) => i).filter((i) => data.steps.run[i] === run.name);
    return [rows.map((i) => data.steps.step[i]), ...LINES.map(([name]) => rows.map((i) => data.steps[name][i]))];
  }

  /** The largest share that any run reaches, so that pictures of several runs can be compared. */
  function highest(data) {
    const values = LINES.flatMap(([name]) => data.steps[name]).filter((value) => value !== null);
    return Math.min(1, Math.max(0.01, 1.1 * Math.max(...values, 0)));
  }

  function card(data, run) {
    const item = Show.make("li");
    if (data.runs.length > 1) {
      const name = item.appendChild(Show.append(Show.make("p", "run-name"), run.name));
      name.prepend(Overview.swatch(data.runs.indexOf(run)));
    }
    const text = item.appendChild(Show.make("div", "verdict-text"));
    const [answer, model] = run.verdict.sentences;
    const cut = answer.indexOf(": ") + 1;
    const first = text.appendChild(Show.make("p", "answer"));
    first.append(Show.make("strong", "", answer.slice(0, cut)), answer.slice(cut));
    text.append(Show.make("p", "answer", model));
    if (run.branching) text.append(Show.make("p", "answer", run.branching.sentence));
    const read = `Flat groups: ${Show.number(run.flat_groups)} of ${Show.number(run.means.groups)}. ${Show.plural(run.means.completions, "completion")}, ${Show.plural(run.means.tokens, "token")} (${run.tokens_from.join(", ")}).`;
    text.append(Show.append(Show.make("small"), read));
    picture(item, data, run);
    return item;
  }

  function picture(item, data, run) {
    const values = ofRun(data, run);
    const figure = item.appendChild(Show.make("figure", "verdict-figure"));
    const caption = figure.appendChild(Show.make("figcaption"));
    caption.append(Show.make("span", "chart-title", values[0].length > 1 ? "Shares at each training step" : `Shares at training step ${values[0][0]}`));
    const legend = caption.appendChild(Show.make("div", "legend"));
    LINES.forEach(([name, title, colour]) => {
      const entry = legend.appendChild(Show.make("span"));
      entry.append(swatch(colour), Show.make("span", "", title), Show.make("b", "", Show.percent(run.means[name])));
    });
    if (values[0].length > 1) curves(figure, values, highest(data));
    else LINES.forEach(([name, , colour]) => figure.append(bar(run.means[name] ?? 0, colour)));
  }

  function swatch(colour) {
    const mark = Show.make("i", "swatch");
    mark.style.background = css(colour);
    return mark;
  }

  function bar(value, colour) {
    const track = Show.make("span", "bar-track");
    const inside = track.appendChild(Show.make("span", "bar"));
    inside.style.width = `${100 * value}%`;
    inside.style.background = css(colour);
    return track;
  }

  function curves(figure, [steps, ...lines], most) {
    const body = figure.appendChild(Show.make("div", "plot"));
    const axis = { stroke: css("--faint"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui", gap: 4 };
    const window = steps.length > 40 ? Math.round(steps.length / 40) : 0;
    const shown = window ? lines.map((line) => Overview.smooth(line, window)) : lines;
    const percents = (_, ticks, __, ___, step) => ticks.map((tick) => Overview.tickLabel(tick, step, Show.percent));
    const plot = new uPlot(
      {
        width: body.clientWidth || 300,
        height: HEIGHT,
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false }, y: { range: [0, most] } },
        axes: [{ ...axis, size: 26, space: 60, incrs: Overview.WHOLE }, { ...axis, size: 44, space: 28, values: percents }],
        series: [
          {},
          ...LINES.map(([, , colour]) => ({ stroke: css(colour), width: 2, spanGaps: true, fill: `${css(colour).trim()}22`, points: { show: steps.length < 12, size: 5, fill: css(colour) } })),
        ],
      },
      [steps, ...shown],
      body,
    );
    plot.over.setAttribute("role", "img");
    plot.over.setAttribute("aria-label", `${LINES.map(([, title]) => title).join(" and ")}, share over ${steps.length} training steps${window ? `, means of ${2 * window + 1} steps` : ""}. The numbers are in the table below.`);
    plots.push(plot);
  }

  function draw(data) {
    plots.forEach((plot) => plot.destroy());
    plots = [];
    const several = data.runs.length > 1;
    document.getElementById("question").textContent = `What does λ-GRPO change in ${several ? "these runs" : "this run"}?`;
    document.getElementById("statements").replaceChildren(...data.runs.map((run) => card(data, run)));
    resize(); // pictures have a width only now
  }

  function resize() {
    for (const plot of plots) plot.setSize({ width: plot.root.parentNode.clientWidth, height: HEIGHT });
  }

  return { draw, resize };
})();
