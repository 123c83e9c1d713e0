"use strict";
// Colours that depend on the theme. The diverging scale runs from orange (negative) to blue (positive), which
// readers with any common colour blindness tell apart; zero is the colour of paper.

const Colour = (() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const SCALES = {
    light: ["#a8410a", "#e98b3f", "#fbd3ab", "#f1f1ee", "#bdd9f0", "#5497d0", "#0d4a8f"],
    dark: ["#ffb066", "#d97a2b", "#7a4520", "#30343a", "#24527f", "#3d88cc", "#8fcbff"],
  };
  const RUNS = {
    light: ["#0072b2", "#d55e00", "#009e73", "#b45a93", "#a37500", "#4a4f57"],
    dark: ["#56b4e9", "#f08a3c", "#2fc79a", "#e29cc6", "#e6b733", "#c3c8d0"],
  };
  const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2], [1, 2]];

  const theme = () => (dark.matches ? "dark" : "light");
  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  /** The colour at `position` from -1 to 1, as [r, g, b]. */
  function diverging(position) {
    const stops = SCALES[theme()];
    const place = ((Math.max(-1, Math.min(1, position)) + 1) / 2) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    const [a, b] = [channels(stops[low]), channels(stops[low + 1])];
    return a.map((value, i) => Math.round(value + (b[i] - value) * (place - low)));
  }

  const css = (rgb) => `rgb(${rgb.join(" ")})`;

  /** Black or white, whichever is read better on a colour. */
  function ink(rgb) {
    const [r, g, b] = rgb.map((value) => ((value / 255) ** 2.2));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.2 ? "#14161a" : "#ffffff";
  }

  /** A push as a position on the scale: the square root keeps small pushes apart from zero. */
  const position = (value, extreme) => (extreme > 0 ? Math.sign(value) * Math.sqrt(Math.abs(value) / extreme) : 0);

  const run = (index) => RUNS[theme()][index % RUNS.light.length];
  const dash = (index) => DASHES[index % DASHES.length];

  return { diverging, css, ink, position, run, dash, dark };
})();
