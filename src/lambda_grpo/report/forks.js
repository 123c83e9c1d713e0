"use strict";
// What a branch plan did to a group: its forks, and which steps were drawn several times, by coincidence.

const Forks = (() => {
  const [TOOTH, LANE] = [6, 10]; // pixels: of a tooth, and between two combs that would touch
  const at = (id) => document.getElementById(id);

  /** Where token `depth` of a completion begins: the step before it, and its place in the figure from 0 to 1. */
  function edge(group, completion, depth, places) {
    const { parent, start, end } = group.nodes;
    let n = group.leaf[completion];
    while (start[n] >= depth && parent[n] >= 0) n = parent[n];
    const { left, width } = places[n];
    return { node: n, place: left + (width * (depth - start[n])) / Math.max(end[n] - start[n], 1) };
  }

  /** Hatch what was drawn more than once, and mark the forks. `box` = { area, row, head }. */
  function draw(svg, group, places, box, blocks) {
    if (!group.branching) return;
    const defs = Figure.element("defs", {}, svg);
    for (const ink of ["dark", "light"]) pattern(defs, ink);
    group.branching.draws.forEach((spans, n) => hatch(group, n, spans, places[n], box, blocks.get(n)));
    const most = Math.max(...group.branching.forks.map((fork) => fork.difference ?? 0), 1e-9);
    const combs = group.branching.forks.map((fork) => comb(group, fork, places, box));
    combs.forEach((one, i) => {
      while (combs.slice(0, i).some((other) => touch(one, other))) one.x -= LANE;
    });
    combs.forEach((one) => mark(svg, one, (one.fork.difference ?? 0) / most));
  }

  function pattern(defs, ink) {
    const made = Figure.element("pattern", { id: `hatch-${ink}`, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, defs);
    Figure.element("rect", { width: 2, height: 6, class: `hatch-${ink}` }, made);
  }

  /** The hatching that is seen on a colour. */
  const hatching = (rgb) => `url(#hatch-${Colour.ink(rgb) === "#ffffff" ? "light" : "dark"})`;

  function hatch(group, n, spans, place, box, block) {
    const { start, end, first, size } = group.nodes;
    for (const [from, to, count] of spans) {
      if (count < 2 || !block) continue;
      const share = (token) => (place.left + (place.width * (token - start[n])) / (end[n] - start[n])) * box.area;
      const made = Figure.element("rect", { class: "hatch", x: share(from), y: box.head + first[n] * box.row, width: Math.max(share(to) - share(from) - 1.5, 0.5), height: size[n] * box.row - 1.5 });
      block.rect.after(made);
      block.hatches.push(made);
    }
  }

  /** Where a fork is drawn: the back of its comb, and a tooth to the middle of each part. */
  function comb(group, fork, places, box) {
    const end = edge(group, fork.parts[0][0], fork.depth, places).place * box.area - 0.75;
    const middles = fork.parts.map((part) => {
      const rows = part.map((completion) => group.order.indexOf(completion));
      return box.head + ((Math.min(...rows) + Math.max(...rows) + 1) / 2) * box.row;
    });
    return { fork, x: end - TOOTH, end, middles, top: Math.min(...middles), bottom: Math.max(...middles) };
  }

  /** Blocks that begin alike by coincidence may lie among one another. */
  const touch = (a, b) => Math.abs(a.x - b.x) < LANE && a.top < b.bottom + LANE && b.top < a.bottom + LANE;

  /** A line between the parts of a fork with a tooth to each, and a dot that grows with the value difference. */
  function mark(svg, { fork, x, end, middles, top, bottom }, share) {
    const path = `M${x} ${top}V${bottom}${middles.map((y) => `M${x} ${y}H${end}`).join("")}`;
    const made = Figure.element("g", { class: "fork" }, svg);
    for (const name of ["halo", "line"]) Figure.element("path", { d: path, class: name }, made);
    Figure.element("circle", { cx: x, cy: (top + bottom) / 2, r: 3 + 2.5 * share, class: share > 0 ? "differs" : "equal" }, made);
    Figure.element("title", {}, made).textContent = said(fork);
  }

  const slots = (part) => (part.length > 6 ? `${part.slice(0, 5).join(", ")}, … (${part.length})` : part.join(", "));

  function said(fork) {
    return `Fork after token ${fork.depth}: ${fork.parts.map((part, i) => `completions ${slots(part)}: ${Show.number(fork.rewards[i])}`).join("; ")}; difference ${Show.number(fork.difference)}`;
  }

  /** The table of a group's forks; a row selects the step that parts. */
  function list(group, select) {
    at("forks").hidden = at("fork-key").hidden = !group.branching;
    if (!group.branching) return;
    const { forks } = group.branching;
    const known = forks.map((fork) => fork.difference).filter((value) => value !== null);
    const mean = known.length ? `: the mean rewards of their parts differ by ${Show.number(known.reduce((a, b) => a + b) / known.length)}` : "";
    at("forks").querySelector("summary").textContent = `${Show.number(forks.length)} ${forks.length === 1 ? "fork" : "forks"}${mean}`;
    at("fork-rows").replaceChildren(...forks.map((fork) => row(group, fork, select)));
  }

  function row(group, fork, select) {
    const made = Show.make("tr");
    const button = made.appendChild(Show.make("td")).appendChild(Show.make("button", "link", `after token ${Show.number(fork.depth)}`));
    button.type = "button";
    button.addEventListener("click", () => select(edge(group, fork.parts[0][0], fork.depth, group.nodes.start.map(() => ({ left: 0, width: 0 }))).node, fork.parts[0][0]));
    made.append(Show.make("td", "fork-difference", Show.number(fork.difference)));
    const parts = made.appendChild(Show.make("td", "fork-parts"));
    fork.parts.forEach((part, i) => parts.append(piece(part, fork.rewards[i])));
    return made;
  }

  function piece(part, reward) {
    const made = Show.make("span", "", `${slots(part)}: `);
    made.append(Show.make("b", "", Show.number(reward)));
    return made;
  }

  /** What to tell of a group beside its other facts. */
  function facts(group) {
    if (!group.branching) return [];
    const share = (name) => Show.percent(group.branching[name] / group.tokens);
    return [
      ["drawn tokens", Show.number(group.branching.drawn_tokens)],
      ["shared by forks", share("sampled_sharing")],
      ["by coincidence", share("coincidental_sharing")],
    ];
  }

  /** How often the tokens of a step were drawn, as a line of its description. */
  function drawn(group, n) {
    const counts = (group.branching?.draws[n] ?? []).map(([, , count]) => count);
    if (!counts.length) return [];
    const [least, most] = [Math.min(...counts), Math.max(...counts)];
    const times = (count) => (count === 1 ? "once" : `${count} times`);
    return [["drawn", least === most ? times(most) : `${times(least)} to ${times(most)}`]];
  }

  return { draw, hatching, list, facts, drawn };
})();
