"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  document.title = `Hidden process rewards: ${data.runs.map((run) => Show.visible(run.name)).join(", ")}`;
  document.getElementById("accuracy-rule").textContent = `Share of completions marked correct in the file or, where it does not say, with a reward of at least ${data.correct_at}.`;
  document.getElementById("made-by").prepend(`Made by lambda-grpo ${data.version}. `);
  Verdict.draw(data);
  Overview.start(data);
  Explorer.start(data);
  if (data.comparison) Compare.start(data);

  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    requestAnimationFrame(() => {
      Verdict.resize();
      Overview.resize();
      Explorer.draw();
    });
  });
  Colour.dark.addEventListener("change", () => {
    Verdict.draw(data);
    Overview.draw(data);
    Explorer.draw();
    Explorer.list();
  });
})();
