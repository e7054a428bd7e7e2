// Draws the page's charts from the data inside it, and hands that data out.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("figures-data").textContent);
  const figures = new Map(page.figures.map((figure) => [figure.name, figure]));

  // Data travels as columns (half the size); Vega wants rows.
  const rows = (columns) => {
    const names = Object.keys(columns);
    return (columns[names[0]] || []).map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
  };

  const draw = async (holder) => {
    const figure = figures.get(holder.dataset.figure);
    const datasets = Object.fromEntries(Object.entries(figure.datasets).map(([name, columns]) => [name, rows(columns)]));
    const spec = { ...figure.spec, datasets };
    // ast: expressions are interpreted, never compiled, so the page's security policy can forbid eval.
    const result = await vegaEmbed(holder, spec, {
      renderer: "svg", ast: true, actions: false, config: page.config, mode: "vega-lite",
    });
    figure.view = result.view;
  };

  const save = (name, type, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  // A spreadsheet runs cells that start like a formula: a leading quote keeps a hostile name a name.
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (columns) => {
    const names = Object.keys(columns);
    const lines = rows(columns).map((row) => names.map((name) => cell(row[name])).join(","));
    return [names.map(cell).join(","), ...lines, ""].join("\n");
  };

  // Outside the page there are no CSS variables: write the colours they stand for now.
  const resolved = (svg) => {
    const style = getComputedStyle(document.documentElement);
    const probe = document.createElement("span");
    document.body.append(probe);
    const colour = (name) => {
      probe.style.color = `var(${name})`;
      return getComputedStyle(probe).color;
    };
    const text = svg.replaceAll(/var\((--[a-z0-9-]+)\)/g, (_, name) => colour(name));
    probe.remove();
    return text.replace("<svg ", `<svg style="background:${style.backgroundColor}" `);
  };

  document.addEventListener("click", async (event) => {
    const { save: kind, of: name } = event.target.dataset ?? {};
    const figure = figures.get(name);
    if (!kind || !figure) return;
    // The largest dataset is the chart's own; small ones are its labels.
    const sets = Object.values(figure.datasets);
    const size = (columns) => Object.values(columns)[0]?.length ?? 0;
    const main = sets.reduce((a, b) => (size(b) > size(a) ? b : a), sets[0]);
    if (kind === "csv") save(`${name}.csv`, "text/csv", csv(main));
    if (kind === "json") save(`${name}.json`, "application/json", JSON.stringify(rows(main)));
    if (kind === "svg" && figure.view) save(`${name}.svg`, "image/svg+xml", resolved(await figure.view.toSVG()));
  });

  const all = [...document.querySelectorAll("[data-figure]")].map((holder) =>
    draw(holder).then(() => true, (error) => {
      holder.classList.add("failed");
      holder.textContent = "This chart could not be drawn; its data can be downloaded below.";
      console.error(error);
      return false;
    }));
  Promise.all(all).then((drawn) => { document.documentElement.dataset.drawn = drawn.filter(Boolean).length; });
})();
