"use strict";
// One group, drawn as the paper's Figure 1: completions are rows, a process step is one block across the rows
// that share it. A group of G completions has at most 2G blocks, so SVG stays fluid however many tokens.

const Figure = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const [CHAR, LINE, HEAD] = [6.7, 14, 22]; // width of a character, height of a line, of the head row

  function element(tag, attributes, parent) {
    const made = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  }

  /** What a token of each step is pushed by: |λ|·A under GRPO, A under λ-GRPO. */
  const pushes = (group, credit) => group.nodes[`push_${credit}`];

  /** The largest push of either credit: both are drawn on one scale. Groups drawn side by side share it. */
  const extreme = (group) => group.extreme ?? Math.max(...pushes(group, "grpo").map(Math.abs), 1e-9);

  /** Left edge and width of each block. */
  function edges(group, widths) {
    const { parent, start, end } = group.nodes;
    const own = start.map((from, n) => (widths === "log" ? Math.log2(1 + end[n] - from) : end[n] - from));
    const left = [];
    own.forEach((_, n) => left.push(n ? left[parent[n]] + own[parent[n]] : 0));
    return own.map((width, n) => ({ left: left[n], width }));
  }

  /** How wide the whole tree is. */
  const total = (group, widths) => Math.max(...edges(group, widths).map(({ left, width }) => left + width), 1e-9);

  /** The same from 0 to 1, or to less if the group is drawn beside a longer one. */
  function spans(group, widths) {
    const whole = group.whole?.[widths] ?? total(group, widths);
    return edges(group, widths).map(({ left, width }) => ({ left: left / whole, width: width / whole }));
  }

  /** To scale, unless that makes shared steps too thin to see, or for the combs of forks. */
  function bestWidths(group, pixels) {
    const least = group.branching ? 24 : 5;
    const thin = spans(group, "scale").some((span, n) => span.width > 0 && group.nodes.size[n] > 1 && span.width * pixels < least);
    return thin ? "log" : "scale";
  }

  function rowHeight(count) {
    return Math.max(12, Math.min(38, 460 / count));
  }

  /** Draw into `host`; returns an object that recolours, selects and focuses. `on` = { point, leave, select }. */
  function draw(host, group, state, on) {
    const wide = host.clientWidth;
    const narrow = wide < 560;
    const right = narrow ? 102 : 160;
    const row = rowHeight(group.rewards.length);
    const area = Math.max(wide - right - 8, 80);
    const height = HEAD + row * group.rewards.length + 2;
    const svg = element("svg", { width: wide, height, viewBox: `0 0 ${wide} ${height}`, role: "group" });
    svg.setAttribute("aria-label", `Process tree of ${group.rewards.length} completions. Use the arrow keys to move between steps.`);
    const places = spans(group, state.widths);
    const blocks = new Map();
    leaders(svg, group, places, { area, row });
    group.nodes.size.forEach((size, n) => {
      if (places[n].width === 0) return;
      const x = places[n].left * area;
      const box = { x, y: HEAD + group.nodes.first[n] * row, width: places[n].width * area, height: size * row };
      blocks.set(n, block(svg, group, n, box, on));
    });
    Forks.draw(svg, group, places, { area, row, head: HEAD }, blocks);
    rewardsColumn(svg, group, { x: area + 14, row, right, narrow }, on);
    svg.addEventListener("keydown", (event) => move(event, group, blocks, on));
    host.replaceChildren(svg);
    const drawn = { recolour, select, find, focus, blocks };
    recolour(state.credit);
    select(state.node, state.completion);
    return drawn;

    function recolour(credit) {
      const [values, most] = [pushes(group, credit), extreme(group)];
      for (const [n, { rect, text, sum, node, hatches }] of blocks) {
        const rgb = Colour.diverging(Colour.position(values[n], most));
        rect.setAttribute("fill", Colour.css(rgb));
        for (const hatch of hatches) hatch.setAttribute("fill", Forks.hatching(rgb));
        for (const line of sum ? [...text, sum] : text) line.setAttribute("fill", Colour.ink(rgb));
        if (sum) sum.textContent = arithmetic(group, n, credit, Number(sum.dataset.room));
        node.setAttribute("aria-label", label(group, n, values[n]));
      }
    }
    function select(chosen, completion) {
      for (const [n, { node }] of blocks) {
        node.classList.toggle("selected", n === chosen);
        node.setAttribute("tabindex", n === chosen ? "0" : "-1");
      }
      if (!blocks.has(chosen) && blocks.size) [...blocks.values()][0].node.setAttribute("tabindex", "0");
      svg.querySelectorAll(".leaf").forEach((leaf) => leaf.classList.toggle("selected", Number(leaf.dataset.completion) === completion));
    }
    /** Fade the steps that hold no match; null: fade none. */
    function find(nodes) {
      svg.classList.toggle("searched", nodes !== null);
      for (const [n, { node }] of blocks) node.classList.toggle("found", nodes?.has(n) ?? false);
    }
    function focus(n) {
      blocks.get(n)?.node.focus();
    }
  }

  function label(group, n, push) {
    const { start, end, size, reward, advantage } = group.nodes;
    return `Step ${n}, tokens ${start[n]} to ${end[n] - 1}, shared by ${size[n]} of ${group.rewards.length}, step reward ${Show.number(reward[n])}, step advantage ${Show.signed(advantage[n])}, push ${Show.signed(push)}: ${Show.visible(Show.cut(group.nodes.text[n], 80))}`;
  }

  /** What is applied, in as many words as fit: "7 × −0.05 = −0.35" under GRPO, "−0.05" under λ-GRPO. */
  function arithmetic(group, n, credit, room) {
    const push = Show.signed(pushes(group, credit)[n]);
    if (credit !== "grpo" || group.nodes.scored[n] < 2) return push;
    const whole = `${group.nodes.scored[n]} × ${Show.signed(group.nodes.advantage[n])} = ${push}`;
    return whole.length <= room ? whole : push;
  }

  function block(svg, group, n, box, on) {
    const node = element("g", { class: "block", role: "button", tabindex: -1, "data-node": n }, svg);
    const gap = Math.min(1.5, box.width / 4);
    const [width, height] = [Math.max(box.width - gap, 0.75), Math.max(box.height - 1.5, 1)];
    const rect = element("rect", { x: box.x, y: box.y, width, height, rx: Math.min(3, width / 2) }, node);
    const room = Math.floor((width - 10) / CHAR); // characters of a line
    const sum = height >= 2 * LINE + 4 && room >= 6 ? element("text", { class: "sum", "data-room": room, x: box.x + width - 5, y: box.y + height - 5 }) : null;
    const text = lines(node, Show.visible(group.nodes.text[n]), { x: box.x, y: box.y, width, height: height - (sum ? LINE : 0) });
    if (sum) node.append(sum);
    node.addEventListener("pointerenter", () => on.point(n, node));
    node.addEventListener("pointerleave", on.leave);
    node.addEventListener("focus", () => on.point(n, node));
    node.addEventListener("blur", on.leave);
    node.addEventListener("click", () => on.select(n));
    return { node, rect, text, sum, hatches: [] };
  }

  /** The step's text, broken into as many lines as the block holds, top to bottom in tall narrow blocks;
   * clipped by an inner SVG. */
  function lines(parent, text, box) {
    const upright = box.width >= 7 * CHAR || box.height < 8 * CHAR;
    const [along, across] = upright ? [box.width, box.height] : [box.height, box.width];
    const [perLine, room] = [Math.floor((along - 8) / CHAR), Math.max(1, Math.floor((across - 4) / LINE))];
    if (perLine < 2 || across < 10 || !text.trim()) return [];
    const characters = [...text.slice(0, 2 * perLine * room + 200).replace(/\n/g, "⏎").replace(/\t/g, "→")];
    const needed = Math.min(room, Math.ceil(characters.length / perLine));
    const clip = element("svg", { x: box.x, y: box.y, width: box.width, height: box.height }, parent);
    const turned = upright ? clip : element("g", { transform: `translate(${box.width} 0) rotate(90)` }, clip);
    const top = (across - needed * LINE) / 2 + LINE - 3.5;
    return Array.from({ length: needed }, (_, i) => {
      let part = characters.slice(i * perLine, (i + 1) * perLine);
      if (i === needed - 1 && characters.length > needed * perLine) part = [...part.slice(0, -1), "…"];
      const line = element("text", { x: 4, y: top + i * LINE, "xml:space": "preserve" }, turned);
      line.textContent = part.join("");
      return line;
    });
  }

  /** Dotted lines from where a completion ends to its reward. */
  function leaders(svg, group, places, { area, row }) {
    group.order.forEach((completion, i) => {
      const leaf = places[group.leaf[completion]];
      const [from, y] = [(leaf.left + leaf.width) * area + 3, HEAD + (i + 0.5) * row];
      if (area - from > 6) element("line", { x1: from, x2: area + 8, y1: y, y2: y, class: "leader" }, svg);
    });
  }

  function rewardsColumn(svg, group, { x, row, right, narrow }, on) {
    const columns = narrow ? [["#", 22], ["reward", right - 18]] : [["#", 24], ["reward", 86], ["adv.", right - 18]];
    for (const [name, at] of columns) element("text", { x: x + at, y: 14, class: "column-head" }, svg).textContent = name;
    const most = Math.max(...group.advantages.map(Math.abs), 1e-9);
    group.order.forEach((completion, i) => {
      const y = HEAD + i * row;
      const leaf = element("g", { class: "leaf", "data-completion": completion }, svg);
      element("rect", { x: x - 6, y, width: right - 6, height: row - 1.5, rx: 3 }, leaf);
      const scored = group.rewards[completion] !== null;
      const dot = scored ? Colour.css(Colour.diverging(Colour.position(group.advantages[completion], most))) : "none";
      element("circle", { cx: x, cy: y + row / 2, r: Math.min(4, row / 3), fill: dot, class: "leaf-dot" }, leaf);
      const values = [String(completion), scored ? Show.number(group.rewards[completion]) : "unscored", scored ? Show.signed(group.advantages[completion]) : "–"];
      columns.forEach(([, at], k) => (element("text", { x: x + at, y: y + row / 2 + 3.7, class: k ? "value" : "value index" }, leaf).textContent = values[k]));
      leaf.addEventListener("click", () => on.select(group.leaf[completion], completion));
    });
  }

  /** Left and right follow the tree, up and down go to the step above or below. */
  function move(event, group, blocks, on) {
    const n = Number(event.target.dataset?.node);
    if (!blocks.has(n)) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      return on.select(n);
    }
    const { parent, first, size, start } = group.nodes;
    const drawn = [...blocks.keys()];
    const middle = first[n] + size[n] / 2;
    const near = (test) => drawn.filter(test).sort((a, b) => Math.abs(start[a] - start[n]) - Math.abs(start[b] - start[n]) || Math.abs(first[a] + size[a] / 2 - middle) - Math.abs(first[b] + size[b] / 2 - middle))[0];
    const below = drawn.filter((m) => first[m] === first[n] + size[n] && m > n);
    const above = drawn.filter((m) => first[m] + size[m] === first[n]);
    const target = {
      ArrowLeft: () => (blocks.has(parent[n]) ? parent[n] : undefined),
      ArrowRight: () => drawn.find((m) => parent[m] === n),
      ArrowDown: () => below.sort((a, b) => Math.abs(start[a] - start[n]) - Math.abs(start[b] - start[n]))[0],
      ArrowUp: () => above.sort((a, b) => Math.abs(start[a] - start[n]) - Math.abs(start[b] - start[n]))[0],
      Home: () => drawn[0],
      End: () => near((m) => first[m] + size[m] === group.rewards.length && m !== n),
    }[event.key]?.();
    if (target === undefined) return;
    event.preventDefault();
    blocks.get(n).node.setAttribute("tabindex", "-1");
    const next = blocks.get(target).node;
    next.setAttribute("tabindex", "0");
    next.focus();
  }

  return { draw, element, pushes, extreme, total, bestWidths };
})();
