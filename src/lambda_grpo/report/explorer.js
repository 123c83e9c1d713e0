"use strict";
// Pick a group, switch between the credits, read its steps and completions.

const Explorer = (() => {
  const at = (id) => document.getElementById(id);
  const state = { group: null, node: 0, completion: 0, credit: "grpo", widths: null };
  let data, listed, drawn;

  const SORTS = {
    flaw: (group) => -(group.best_share_down_grpo ?? -1),
    spread: (group) => -(group.spread ?? -1),
    depth: (group) => -(group.path_depth ?? 0),
    order: () => 0,
  };

  function options(select, values, all) {
    select.replaceChildren(new Option(all, ""), ...values.map((value) => new Option(Show.visible(String(value)), String(value))));
  }

  function haystack(group) {
    group.haystack ??= [group.run, group.group, group.prompt, ...group.nodes.text].join("\n").toLowerCase();
    return group.haystack;
  }

  function list() {
    const [query, run, step] = [at("search").value.trim().toLowerCase(), at("pick-run").value, at("pick-step").value];
    const key = SORTS[at("sort").value];
    listed = data.groups
      .filter((group) => (!run || group.run === run) && (!step || String(group.step) === step) && (!query || haystack(group).includes(query)))
      .sort((a, b) => key(a) - key(b));
    at("match-count").textContent = `${Show.number(listed.length)} of ${Show.plural(data.groups.length, "shown group")}`;
    at("groups").replaceChildren(...listed.map(entry));
    if (listed.length && !listed.includes(state.group)) pick(listed[0]);
    else if (state.group) refresh();
    mark();
  }

  function entry(group, index) {
    const item = Show.make("li");
    item.id = `group-${index}`;
    item.setAttribute("role", "option");
    const head = item.appendChild(Show.make("span", "entry-head"));
    if (data.runs.length > 1) {
      const dot = head.appendChild(Show.make("i", "dot"));
      dot.style.background = Colour.run(data.runs.findIndex((run) => run.name === group.run));
      dot.title = Show.visible(group.run);
    }
    Show.append(head.appendChild(Show.make("b")), `step ${group.step} · group ${Show.cut(group.group, 60)}`);
    Show.append(item.appendChild(Show.make("span", "entry-prompt")), Show.cut(group.prompt.replace(/\s+/g, " "), 90));
    const down = group.best_share_down_grpo;
    const facts = `reward spread ${Show.number(group.spread)} · depth ${Show.number(group.path_depth)}${down ? ` · best\u00a0↓\u00a0${Show.percent(down)}` : ""}`;
    item.append(Show.make("span", "entry-facts", facts));
    item.addEventListener("click", () => pick(group));
    return item;
  }

  function mark() {
    const index = listed.indexOf(state.group);
    [...at("groups").children].forEach((item, i) => item.setAttribute("aria-selected", String(i === index)));
    if (index >= 0) at("groups").setAttribute("aria-activedescendant", `group-${index}`);
    else at("groups").removeAttribute("aria-activedescendant");
  }

  function keys(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (!step || !listed.length) return;
    event.preventDefault();
    pick(listed[Math.max(0, Math.min(listed.length - 1, listed.indexOf(state.group) + step))]);
    at("groups").children[listed.indexOf(state.group)].scrollIntoView({ block: "nearest" });
  }

  function pick(group) {
    Object.assign(state, { group, completion: group.order[0], widths: null });
    state.node = group.leaf[state.completion];
    Show.append(clear("group-title").appendChild(Show.make("bdi")), `Step ${group.step}, group ${Show.cut(group.group, 120)}`);
    if (data.runs.length > 1) Show.append(at("group-title").appendChild(Show.make("span", "run-name")), group.run);
    const facts = [
      ["completions", Show.number(group.completions)],
      ...(group.scored < group.completions ? [["unscored", Show.number(group.completions - group.scored)]] : []),
      ["mean reward", Show.number(group.reward)],
      ["path depth", Show.number(group.path_depth)],
      ["tokens with |λ| > 1", Show.percent(group.shared_tokens)],
      ["unique tokens", `${Show.number(group.unique_tokens)} of ${Show.number(group.tokens)}`],
      ...Forks.facts(group),
      ["best pushed down by", group.best_share_down_grpo === null ? "–" : `${Show.percent(group.best_share_down_grpo)} → ${Show.percent(group.best_share_down_lambda)}`],
    ];
    clear("group-facts").append(...facts.map(([name, value]) => {
      const fact = Show.make("span", "fact", name);
      fact.prepend(Show.make("b", "", value));
      return fact;
    }));
    mark();
    Reader.pick();
    Find.search();
    Forks.list(group, select);
    draw();
    Reader.show();
    at("completion").scrollTop = 0;
  }

  /** Show the completion and the matches anew. */
  function refresh() {
    drawn.find(Find.nodes());
    Reader.show();
  }

  const clear = (id) => {
    at(id).replaceChildren();
    return at(id);
  };

  function draw() {
    hide();
    const group = state.group;
    if (!group) return;
    state.widths ??= Figure.bestWidths(group, at("figure").clientWidth - 160);
    for (const radio of document.querySelectorAll("input[name=widths]")) radio.checked = radio.value === state.widths;
    for (const radio of document.querySelectorAll("input[name=credit]")) radio.checked = radio.value === state.credit;
    drawn = Figure.draw(at("figure"), group, state, { point, leave: hide, select });
    drawn.find(Find.nodes());
    scale();
  }

  function scale() {
    const host = clear("scale");
    const most = Figure.extreme(state.group);
    host.setAttribute("aria-label", `Colour scale: orange is pushed down, blue is pushed up, from ${Show.signed(-most)} through 0 to ${Show.signed(most)}`);
    const bar = host.appendChild(Show.make("span", "scale-bar"));
    const stops = Array.from({ length: 21 }, (_, i) => Colour.css(Colour.diverging(i / 10 - 1)));
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    const ticks = host.appendChild(Show.make("span", "scale-ticks"));
    for (const [place, value] of [[0, -most], [0.25, -most / 4], [0.5, 0], [0.75, most / 4], [1, most]]) {
      const tick = ticks.appendChild(Show.make("span", "", place === 0.5 ? "0" : Show.signed(value)));
      tick.style.left = `${100 * place}%`;
    }
    const words = host.appendChild(Show.make("span", "scale-words"));
    words.append(Show.make("span", "", "pushed down"), Show.make("span", "", "pushed up"));
  }

  /** Show what a step is, beside its block. */
  function point(n, target) {
    const { group, credit } = state;
    const { start, end, size, scored, reward, advantage, text } = group.nodes;
    const [times, part] = scored[n] < size[n] ? ["scored·", "scored/|λ|·"] : ["|λ|·", ""];
    const tip = clear("tip");
    tip.append(Show.append(Show.make("p", "tip-text"), Show.cut(text[n], 320) || "(no text)"));
    const rows = [
      ["tokens", end[n] - start[n] === 1 ? `${start[n]}` : `${start[n]} to ${end[n] - 1} (${Show.number(end[n] - start[n])})`],
      ["shared by |λ|", `${size[n]} of ${group.rewards.length}`],
      ...Forks.drawn(group, n),
      ...(scored[n] < size[n] ? [["scored of them", `${scored[n]}`]] : []),
      ["step reward R̂", Show.number(reward[n])],
      ["step advantage A", Show.signed(advantage[n])],
      ["weight", credit === "grpo" ? "1" : size[n] === 1 ? "1" : `1/${size[n]}`],
      [`push ${credit === "grpo" ? times : part}A`, Show.signed(Figure.pushes(group, credit)[n])],
      ["of the group's gradient", Show.percent(group.nodes[`share_${credit}`][n])],
    ];
    const list = tip.appendChild(Show.make("dl"));
    for (const [name, value] of rows) list.append(Show.make("dt", "", name), Show.make("dd", "", value));
    tip.hidden = false;
    Object.assign(tip.style, { left: "0", top: "0" }); // else the edge of the page narrows it
    const [box, own] = [target.getBoundingClientRect(), tip.getBoundingClientRect()];
    const left = Math.min(Math.max(8, box.left + Math.min(box.width, 60) / 2), document.documentElement.clientWidth - own.width - 12);
    const under = box.bottom + 8 + own.height < innerHeight;
    const top = under ? box.bottom + 8 : Math.max(8, box.top - own.height - 8);
    Object.assign(tip.style, { left: `${left + scrollX}px`, top: `${top + scrollY}px` });
  }

  function hide() {
    at("tip").hidden = true;
  }

  /** Read the completion, or the first one that passes through the step. */
  function select(n, completion) {
    const { first, size } = state.group.nodes;
    const members = state.group.order.slice(first[n], first[n] + size[n]);
    state.node = n;
    if (completion !== undefined) state.completion = completion;
    else if (!members.includes(state.completion)) state.completion = members[0];
    drawn.select(state.node, state.completion);
    Reader.open(n);
  }

  /** Read the completion that has a match, at the match. */
  function go(match, completion) {
    Object.assign(state, { completion, node: match.node });
    drawn.find(Find.nodes());
    drawn.select(state.node, state.completion);
    Reader.reveal(match);
  }

  function turn(by) {
    const { order, leaf } = state.group;
    const next = order[(order.indexOf(state.completion) + by + order.length) % order.length];
    select(leaf[next], next);
  }

  /** Keys for reading, while the group or its text has the focus. */
  function shortcuts(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    const act = {
      "/": () => (at("find").focus(), at("find").select()),
      n: () => Find.step(1),
      N: () => Find.step(-1),
      j: () => turn(1),
      k: () => turn(-1),
      f: () => Reader.toggleAll(),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  function start(content) {
    data = content;
    options(at("pick-run"), data.runs.map((run) => run.name), "all");
    options(at("pick-step"), [...new Set(data.groups.map((group) => group.step))].sort((a, b) => a - b), "all");
    at("pick-run").closest("label").hidden = data.runs.length < 2;
    const rest = data.groups_total - data.groups.length;
    at("sample-note").textContent = rest
      ? `A sample of ${Show.number(data.groups.length)} of ${Show.plural(data.groups_total, "group")}, to bound the size of this page: half of them those with most to show, half drawn by chance. All numbers above are over all groups.${data.groups_cut ? ` ${data.groups_cut} of the sample ${data.groups_cut === 1 ? "was" : "were"} too long.` : ""}`
      : data.groups.length === 1 ? "The only group." : `All ${Show.number(data.groups.length)} groups.`;
    document.querySelector(".explorer").hidden = !data.groups.length;
    if (!data.groups.length) return;
    at("search").addEventListener("input", () => Find.ask(at("search").value.trim()));
    for (const id of ["search", "pick-run", "pick-step", "sort"]) at(id).addEventListener("input", list);
    at("groups").addEventListener("keydown", keys);
    at("credit").addEventListener("change", (event) => {
      state.credit = event.target.value;
      hide();
      drawn.recolour(state.credit);
      Reader.show();
    });
    at("widths").addEventListener("change", (event) => {
      state.widths = event.target.value;
      draw();
    });
    at("previous").addEventListener("click", () => turn(-1));
    at("next").addEventListener("click", () => turn(1));
    document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
    document.querySelector(".stage").addEventListener("keydown", shortcuts);
    Reader.start(state, { point, leave: hide, select });
    Find.start(state, { go, changed: refresh });
    list();
  }

  return { start, draw, list };
})();
