"use strict";
// Several runs side by side: the answers on top, and what ties the other parts together.

const Compare = (() => {
  const at = (id) => document.getElementById(id);
  let data;

  function names() {
    const heading = at("compare-title");
    data.runs.forEach((run, i) => {
      const join = i === 0 ? "" : i === data.runs.length - 1 ? " and " : ", ";
      Show.append(heading.appendChild(Show.make("span", "", join)).parentNode.appendChild(Show.make("bdi")), Show.cut(run.name, 60));
    });
    heading.append(", side by side");
  }

  function answers() {
    at("compare-answers").append(...data.comparison.answers.map((answer) => Show.append(Show.make("li", "answer"), answer)));
  }

  function draw() {
    Finals.draw(data);
    Problems.draw();
    Pair.draw();
  }

  function start(content) {
    data = content;
    names();
    answers();
    Pair.start(data);
    Problems.start(data);
    const shown = data.groups.length;
    at("sample-note").textContent = shown < data.groups_total
      ? `${Show.number(shown)} of ${Show.plural(data.groups_total, "group")}, to bound the size of this page: those of problems that several runs met, and a sample. All numbers above are over all groups.${data.groups_cut ? ` ${data.groups_cut} more ${data.groups_cut === 1 ? "was" : "were"} too long.` : ""}`
      : at("sample-note").textContent;
    draw();
    let width = innerWidth;
    addEventListener("resize", () => {
      if (innerWidth !== width) requestAnimationFrame(Pair.draw);
      width = innerWidth;
    });
    Colour.dark.addEventListener("change", draw);
  }

  return { start };
})();
