(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const scale = () => [0, 1, 2, 3, 4].map((step) => [step / 4, colour(`--heat-${step}`)]);

  function draw(figure) {
    const chart = figures[figure.dataset.chart];
    const key = [...figure.querySelectorAll("select")].map((select) => select.value).join("|");
    const plot = figure.querySelector(".plot");
    const caption = figure.querySelector("figcaption");
    const chosen = chart[key];
    if (!chosen) {
      Plotly.purge(plot);
      plot.style.minHeight = "0";
      caption.textContent = "This run has no value of this metric.";
      return;
    }
    const ink = colour("--ink-soft");
    const layout = structuredClone(chosen.layout);
    layout.font.color = ink;
    layout.dragmode = false;
    layout.hoverlabel = { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } };
    for (const name of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
      layout[name].fixedrange = true;
      layout[name].gridcolor = colour("--line");
      layout[name].linecolor = colour("--line");
    }
    const data = structuredClone(chosen.data);
    for (const trace of data) {
      if (trace.type === "heatmap") trace.colorscale = scale();
    }
    plot.style.minHeight = `${layout.height}px`;
    Plotly.react(plot, data, layout, { responsive: true, displayModeBar: false });
    caption.textContent = chosen.caption;
  }

  const all = [...document.querySelectorAll("figure[data-chart]")];
  for (const figure of all) {
    figure.addEventListener("change", () => draw(figure));
    draw(figure);
  }
  dark.addEventListener("change", () => all.forEach(draw));
})();
