"use strict";
// One problem's groups of all runs, next to each other: the trees on common axes and in common colours, and a
// completion of each. The address names the problem, so links lead here and a reload comes back.

const Pair = (() => {
  const FOLD = 3000; // characters of a text that are shown
  const at = (id) => document.getElementById(id);
  const key = (run, group) => JSON.stringify([run, group.step, group.group]);
  let data, groups, shown, problem;
  let cards = [];
  let credit = "grpo";

  /** The problems of which at least two runs' groups are on the page. */
  function problems() {
    return data.comparison.problems.filter((one) => one.groups.filter((group, run) => group && groups.has(key(data.runs[run].name, group))).length > 1);
  }

  function card(run, group, common) {
    const box = Show.make("article", "pair-card");
    const head = box.appendChild(Show.make("h3", "run-name"));
    Show.append(head, data.runs[run].name).prepend(Overview.swatch(run));
    const met = problem.groups[run];
    const full = met && groups.get(key(data.runs[run].name, met));
    if (!full) {
      box.append(Show.make("p", "note", met ? "Its group is not shown on this page, to bound its size." : "This run did not meet the problem."));
      return { box };
    }
    const facts = [
      ["step · group", `${met.step} · ${Show.visible(Show.cut(met.group, 30))}`],
      ["right", `${met.right} of ${met.scored}`],
      ["mean reward", Show.number(full.reward)],
      ["path depth", Show.number(full.path_depth)],
      ["shared tokens", Show.percent(full.shared_tokens)],
    ];
    const list = box.appendChild(Show.make("p", "facts"));
    for (const [name, value] of facts) list.appendChild(Show.make("span", "fact", name)).prepend(Show.make("b", "", value));
    const made = { box, group: { ...full, ...common }, figure: box.appendChild(Show.make("div", "figure")), completion: full.order[0] };
    made.node = full.leaf[made.completion];
    const line = box.appendChild(Show.make("div", "reader-head"));
    made.title = line.appendChild(Show.make("h4"));
    const buttons = line.appendChild(Show.make("span", "buttons"));
    for (const [text, by, label] of [["←", -1, "Previous completion"], ["→", 1, "Next completion"]]) {
      const button = buttons.appendChild(Show.make("button", "", text));
      Object.assign(button, { type: "button", ariaLabel: label, title: label });
      button.addEventListener("click", () => turn(made, by));
    }
    made.text = box.appendChild(Show.make("div", "text completion"));
    return made;
  }

  function turn(made, by) {
    const { order, leaf } = made.group;
    const next = order[(order.indexOf(made.completion) + by + order.length) % order.length];
    select(made, leaf[next], next);
  }

  function select(made, n, completion) {
    const { first, size } = made.group.nodes;
    const members = made.group.order.slice(first[n], first[n] + size[n]);
    made.node = n;
    made.completion = completion ?? (members.includes(made.completion) ? made.completion : members[0]);
    made.drawn.select(made.node, made.completion);
    read(made);
  }

  function read(made) {
    const { group, completion } = made;
    const reward = group.rewards[completion];
    made.title.textContent = `Completion ${completion}: ${reward === null ? "unscored" : `reward ${Show.number(reward)}`}, ${Show.plural(group.lengths[completion], "token")}`;
    const path = [];
    for (let n = group.leaf[completion]; n >= 0; n = group.nodes.parent[n]) path.unshift(n);
    let room = FOLD;
    const parts = [];
    for (const n of path) {
      if (room <= 0) break;
      parts.push(step(made, n, room));
      room -= group.nodes.text[n].length;
    }
    made.text.replaceChildren(...parts);
    if (room < 0) made.text.append(Show.make("p", "note", "The rest is in the group explorer below."));
  }

  function step(made, n, room) {
    const part = Show.append(Show.make("bdi", "part step"), Show.cut(made.group.nodes.text[n], room));
    const rgb = Colour.diverging(Colour.position(Figure.pushes(made.group, credit)[n], Figure.extreme(made.group)));
    Object.assign(part.style, { background: Colour.css(rgb), color: Colour.ink(rgb) });
    part.classList.toggle("selected", n === made.node);
    part.addEventListener("click", () => select(made, n, made.completion));
    return part;
  }

  /** What a step is, beside its block. */
  function point(made, n, target) {
    const { start, end, size, reward, advantage, text } = made.group.nodes;
    const tip = at("tip");
    const rows = [
      ["tokens", Show.number(end[n] - start[n])],
      ["shared by |λ|", `${size[n]} of ${made.group.rewards.length}`],
      ["step reward R̂", Show.number(reward[n])],
      ["step advantage A", Show.signed(advantage[n])],
      ["push", Show.signed(Figure.pushes(made.group, credit)[n])],
    ];
    const list = Show.make("dl");
    for (const [name, value] of rows) list.append(Show.make("dt", "", name), Show.make("dd", "", value));
    tip.replaceChildren(Show.append(Show.make("p", "tip-text"), Show.cut(text[n], 320) || "(no text)"), list);
    tip.hidden = false;
    Object.assign(tip.style, { left: "0", top: "0" });
    const [box, own] = [target.getBoundingClientRect(), tip.getBoundingClientRect()];
    const left = Math.min(Math.max(8, box.left), document.documentElement.clientWidth - own.width - 12);
    const top = box.bottom + 8 + own.height < innerHeight ? box.bottom + 8 : Math.max(8, box.top - own.height - 8);
    Object.assign(tip.style, { left: `${left + scrollX}px`, top: `${top + scrollY}px` });
  }

  const hide = () => (at("tip").hidden = true);

  /** One scale of colours and of widths for all groups that are shown. */
  function common() {
    const all = problem.groups.map((met, run) => met && groups.get(key(data.runs[run].name, met))).filter(Boolean);
    const most = (widths) => Math.max(...all.map((group) => Figure.total(group, widths)));
    return { extreme: Math.max(...all.map(Figure.extreme)), whole: { scale: most("scale"), log: most("log") } };
  }

  function show(chosen) {
    problem = chosen;
    const first = problem.groups.findIndex((met, run) => met && groups.has(key(data.runs[run].name, met)));
    const prompt = groups.get(key(data.runs[first].name, problem.groups[first])).prompt;
    const place = shown.indexOf(problem);
    at("pair-note").textContent = `Problem ${place + 1} of ${shown.length} that are shown in full. All trees have the same scale of tokens and of colours. Click a box to read a completion.`;
    Show.append(Object.assign(at("pair-prompt"), { textContent: "" }), Show.cut(prompt, FOLD) || "(the file holds no prompt)");
    const scales = common();
    cards = data.runs.map((_, run) => card(run, problem.groups[run], scales));
    at("pair-cards").replaceChildren(...cards.map(({ box }) => box));
    draw();
  }

  function draw() {
    hide();
    const drawn = cards.filter((made) => made.group);
    const widths = drawn.some((made) => Figure.bestWidths(made.group, made.figure.clientWidth - 160) === "log") ? "log" : "scale";
    for (const made of drawn) {
      const on = { point: (n, target) => point(made, n, target), leave: hide, select: (n, completion) => select(made, n, completion) };
      made.drawn = Figure.draw(made.figure, made.group, { node: made.node, completion: made.completion, credit, widths }, on);
      read(made);
    }
  }

  const named = () => shown.find((one) => location.hash === `#problem=${one.id}`);

  function follow() {
    const wanted = named();
    if (!wanted) return;
    show(wanted);
    at("pair").scrollIntoView({ block: "start" });
    at("pair-title").focus({ preventScroll: true });
  }

  function step_on(by) {
    const next = shown[(shown.indexOf(problem) + by + shown.length) % shown.length];
    history.replaceState(null, "", `#problem=${next.id}`);
    show(next);
  }

  function start(content) {
    data = content;
    groups = new Map(data.groups.map((group) => [key(group.run, group), group]));
    shown = problems();
    at("pair").hidden = !shown.length;
    if (!shown.length) return;
    at("pair-previous").addEventListener("click", () => step_on(-1));
    at("pair-next").addEventListener("click", () => step_on(1));
    at("pair-credit").addEventListener("change", (event) => {
      credit = event.target.value;
      draw();
    });
    addEventListener("hashchange", follow);
    show(named() ?? shown[0]);
  }

  return { start, draw, problems };
})();
