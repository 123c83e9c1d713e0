"use strict";
// Who got what right that the other did not: counts for two runs, over the training too, and lists with links.

const Problems = (() => {
  const MOST = 100; // entries of a list
  const at = (id) => document.getElementById(id);
  let data, shown;
  let pair, rule = "most";

  const right = ({ right, scored }) => (rule === "most" ? right > scored / 2 : right > 0);
  const share = ({ right, scored }) => right / scored;

  /** The two groups of a problem, null unless both runs met it and have rewards. */
  function both(problem) {
    const groups = pair.runs.map((run) => problem.groups[run]);
    return groups.every((group) => group?.scored) ? groups : null;
  }

  const colour = (kind) => ({ both: "var(--both)", neither: "var(--neither)" })[kind] ?? Colour.run(pair.runs[kind]);

  /** Problems that both got right, only one, neither: as parts of a bar, with their counts below. */
  function bar() {
    const who = pair[rule];
    const name = (run) => Show.cut(data.runs[pair.runs[run]].name, 40);
    const parts = [["both", "both", who.both], [0, `only ${name(0)}`, who.only[0]], [1, `only ${name(1)}`, who.only[1]], ["neither", "neither", who.neither]];
    const swatch = (kind) => {
      const mark = Show.make("i", "swatch");
      mark.style.background = colour(kind);
      return mark;
    };
    at("who-bar").replaceChildren(...parts.filter(([, , count]) => count).map(([kind, title, count]) => {
      const piece = Show.make("span", "who-piece");
      Object.assign(piece.style, { background: colour(kind), flexGrow: count });
      piece.title = Show.visible(`${title}: ${count}`);
      return piece;
    }));
    at("who-legend").replaceChildren(...parts.map(([kind, title, count]) => {
      const item = Show.make("li");
      item.append(swatch(kind), Show.append(Show.make("span"), title), Show.make("b", "", Show.number(count)), Show.make("span", "who-share", pair.scored ? Show.percent(count / pair.scored) : ""));
      return item;
    }));
  }

  /** Upwards what only the first run got right, downwards what only the second did, per problem met. */
  function overTraining() {
    const { parts } = pair[rule];
    const most = Math.max(...parts.flatMap((part) => part.only.map((count) => count / part.problems)), 1e-9);
    at("who-over").hidden = parts.length < 2;
    at("who-parts").replaceChildren(...parts.map((part) => {
      const column = Show.make("span", "who-column");
      column.title = `Steps ${part.from} to ${part.to}: ${part.only[0]} and ${part.only[1]} of ${Show.plural(part.problems, "problem")}`;
      part.only.forEach((count, run) => {
        const half = column.appendChild(Show.make("span", `who-half ${run ? "down" : "up"}`));
        const inside = half.appendChild(Show.make("span"));
        Object.assign(inside.style, { height: `${(100 * count) / part.problems / most}%`, background: colour(run) });
      });
      return column;
    }));
    const last = parts.at(-1);
    at("who-parts").setAttribute("aria-label", `Shares of problems right in one run only, at most ${Show.percent(most)}, in ${parts.length} parts of the training.`);
    at("who-steps").replaceChildren(...(last ? [Show.make("span", "", `step ${parts[0].from}`), Show.make("span", "", `a bar is at most ${Show.percent(most)} of the problems`), Show.make("span", "", `${last.to}`)] : []));
  }

  function score(group, run) {
    const box = Show.make("span", "score");
    const track = box.appendChild(Show.make("span", "score-track"));
    Object.assign(track.appendChild(Show.make("span")).style, { width: `${100 * share(group)}%`, background: Colour.run(run) });
    box.append(`${group.right} of ${group.scored}`);
    return box;
  }

  function entry(problem) {
    const item = Show.make("li");
    const linked = shown.has(problem.id);
    const head = item.appendChild(Show.make(linked ? "a" : "span", "problem-prompt"));
    if (linked) head.href = `#problem=${problem.id}`;
    else head.title = "Its groups are not shown on this page, to bound its size";
    Show.append(head, problem.prompt.replace(/\s+/g, " ") || "(no prompt text)");
    const groups = both(problem);
    const facts = item.appendChild(Show.make("span", "problem-facts"));
    const [a, b] = groups.map((group) => group.step);
    facts.append(Show.make("span", "", a === b ? `step ${a}` : `steps ${a} and ${b}`), ...groups.map((group, i) => score(group, pair.runs[i])));
    return item;
  }

  function list(title, run, count, problems) {
    const box = Show.make("article", "only");
    const head = box.appendChild(Show.make("h3", "run-name"));
    head.append(Overview.swatch(run), Show.append(Show.make("span"), title), Show.make("b", "", Show.number(count)));
    const host = box.appendChild(Show.make("ol", "problems"));
    host.append(...problems.slice(0, MOST).map(entry));
    if (!count) box.append(Show.make("p", "note", "None."));
    else if (Math.min(problems.length, MOST) < count) box.append(Show.make("p", "note small", `The ${Math.min(problems.length, MOST)} of them in which the runs are furthest apart. What is underlined is shown in full below.`));
    return box;
  }

  function draw() {
    if (!pair?.scored) return;
    bar();
    overTraining();
    const known = data.comparison.problems.filter(both);
    const only = [0, 1].map((run) => known.filter((problem) => {
      const groups = both(problem);
      return right(groups[run]) && !right(groups[1 - run]);
    }));
    const name = (run) => Show.cut(data.runs[pair.runs[run]].name, 60);
    only.forEach((problems, run) => problems.sort((x, y) => gap(y, run) - gap(x, run)));
    at("only-lists").replaceChildren(...only.map((problems, run) => list(`Right in ${name(run)} only`, pair.runs[run], pair[rule].only[run], problems)));
    const others = known.filter((problem) => shown.has(problem.id) && !only.flat().includes(problem));
    at("others").hidden = !others.length;
    at("others").querySelector("summary").textContent = `${Show.plural(others.length, "more problem")} shown in full: both right, or neither`;
    at("others").querySelector("ol").replaceChildren(...others.map(entry));
  }

  function gap(problem, run) {
    const groups = both(problem);
    return share(groups[run]) - share(groups[1 - run]);
  }

  /** What is counted. */
  function note() {
    if (!pair.met) return "The runs met no problem in common, so there is nothing to compare here.";
    const told = [`${Show.plural(pair.met, "problem")} ${pair.met === 1 ? "was" : "were"} met by both runs${pair.scored < pair.met ? `, ${Show.number(pair.scored)} of them with rewards in both` : ""}. A problem that was met at several steps counts for each.`];
    if (pair.other_step) told.push(`${Show.number(pair.other_step)} ${pair.other_step === 1 ? "was" : "were"} met at another step by the other run, which was then another policy.`);
    if (pair.same) told.push(`In ${Show.number(pair.same)} both sampled the same completions.`);
    return told.join(" ");
  }

  function choose() {
    const wanted = [Number(at("pair-a").value), Number(at("pair-b").value)].sort((a, b) => a - b);
    pair = data.comparison.pairs.find(({ runs }) => runs[0] === wanted[0] && runs[1] === wanted[1]);
    at("problems-body").hidden = !pair?.scored;
    at("problems-note").textContent = pair ? note() : "Choose two different runs.";
    if (pair?.scored) draw();
  }

  function start(content) {
    data = content;
    shown = new Set(Pair.problems().map((problem) => problem.id));
    for (const [id, chosen] of [["pair-a", 0], ["pair-b", 1]]) {
      at(id).replaceChildren(...data.runs.map((run, i) => new Option(Show.visible(Show.cut(run.name, 60)), i, i === chosen, i === chosen)));
      at(id).addEventListener("input", choose);
    }
    at("pair-selects").hidden = data.runs.length < 3;
    at("rule").addEventListener("change", (event) => {
      rule = event.target.value;
      draw();
    });
    choose();
  }

  return { start, draw };
})();
