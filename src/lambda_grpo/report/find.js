"use strict";
// Search in the completions of a group. A match in a step that several completions share counts once.

const Find = (() => {
  const MOST = 2000; // matches kept
  const at = (id) => document.getElementById(id);
  const wholes = new WeakMap(); // of each group the texts, which take a while to join
  let state, on;
  let pattern = null;
  let matches = []; // { completion, node, from, to }, by completion in the order of the figure, then place
  let holding = 0; // completions with a match
  let current = -1;

  /** Join the search to the explorer: `on` = { go, changed }. */
  function start(shared, actions) {
    [state, on] = [shared, actions];
    at("find").addEventListener("input", () => {
      search();
      const first = matches.findIndex(here());
      if (first >= 0) turn(first);
      else on.changed();
    });
    at("find").addEventListener("keydown", (event) => {
      if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
      else if (event.key === "Escape") clear();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    at("find-previous").addEventListener("click", () => step(-1));
    at("find-next").addEventListener("click", () => step(1));
  }

  /** Each completion's text, and where its steps begin in it. */
  function texts(group) {
    if (!wholes.has(group)) wholes.set(group, group.order.map((completion) => whole(group, completion)));
    return wholes.get(group);
  }

  function whole(group, completion) {
    const nodes = Reader.path(group, completion);
    let length = 0;
    const starts = nodes.map((n) => (length += group.nodes.text[n].length) - group.nodes.text[n].length);
    return { completion, nodes, starts, text: nodes.map((n) => group.nodes.text[n]).join("") };
  }

  /** Search the group at hand for what is asked. */
  function search() {
    const asked = at("find").value;
    pattern = asked ? new RegExp(asked.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&"), "gi") : null;
    [matches, holding, current] = [[], 0, -1];
    if (pattern) {
      const seen = new Set();
      for (const one of texts(state.group)) {
        collect(one, seen);
        holding += Number(one.text.search(pattern) >= 0);
      }
    }
    tell();
  }

  function collect({ completion, nodes, starts, text }, seen) {
    for (const found of text.matchAll(pattern)) {
      if (matches.length >= MOST) return;
      const place = starts.findLastIndex((from) => from <= found.index);
      const key = `${nodes[place]} ${found.index}`;
      if (!seen.has(key)) matches.push({ completion, node: nodes[place], from: found.index, to: found.index + found[0].length });
      seen.add(key);
    }
  }

  function tell() {
    const count = `${Show.number(matches.length)}${matches.length === MOST ? "+" : ""}`;
    const place = current < 0 ? count : `${Show.number(current + 1)} of ${count}`;
    const many = `in ${holding} of ${state.group.order.length} completions`;
    at("found").textContent = !pattern ? "" : matches.length ? `${place}, ${many}` : "nothing found";
    for (const id of ["find-previous", "find-next"]) at(id).disabled = !matches.length;
  }

  /** The matches in one completion, the current one told. */
  function inside(completion) {
    if (!pattern) return [];
    const { text: all } = texts(state.group)[state.group.order.indexOf(completion)];
    const found = [];
    for (const { index, 0: text } of all.matchAll(pattern)) {
      found.push({ from: index, to: index + text.length, current: matches[current]?.from === index });
      if (found.length === MOST) break;
    }
    return found;
  }

  /** A test whether the completion at hand has a match too. */
  function here() {
    const places = new Set(inside(state.completion).map(({ from }) => from));
    const nodes = new Set(Reader.path(state.group, state.completion));
    return (match) => places.has(match.from) && nodes.has(match.node);
  }

  /** Go to the next match or the one before; the first time, from the completion at hand. */
  function step(by) {
    if (!matches.length) return;
    const begin = current < 0 ? Math.max(matches.findIndex(here()), 0) - Math.max(by, 0) : current;
    turn((begin + by + matches.length) % matches.length);
  }

  function turn(index) {
    current = index;
    tell();
    on.go(matches[index], here()(matches[index]) ? state.completion : matches[index].completion);
  }

  function clear() {
    at("find").value = "";
    search();
    on.changed();
    at("completion").focus();
  }

  /** Ask for something, without going there. */
  function ask(text) {
    at("find").value = text;
    if (state.group) search();
  }

  /** The steps that hold a match; null if there is none. */
  const nodes = () => (matches.length ? new Set(matches.map((match) => match.node)) : null);

  return { start, search, ask, step, inside, nodes };
})();
