// The chart of the page of a simulated run, as data: its lanes with their marks, and its legend.
() => {
  const box = (element) => {
    const { left, top, right, bottom } = element.getBoundingClientRect();
    return { left, top, right, bottom };
  };
  const lanes = [...document.querySelectorAll(".lane")].map((lane) => ({
    name: lane.querySelector(".name").textContent,
    box: box(lane),
    drawing: box(lane.querySelector("svg")),
    bars: [...lane.querySelectorAll("rect")].map((bar) => ({
      kind: bar.getAttribute("class"),
      fill: getComputedStyle(bar).fill,
      title: bar.querySelector("title")?.textContent ?? "",
      box: box(bar),
      label: bar.nextElementSibling?.tagName === "text" ? box(bar.nextElementSibling) : null,
    })),
    ticks: [...lane.querySelectorAll(".tick, .end")].map((tick) => tick.querySelector("title")?.textContent ?? ""),
  }));
  const legend = [...document.querySelectorAll(".legend span")].map((entry) => {
    const swatch = entry.querySelector("i");
    const style = getComputedStyle(swatch);
    return { name: entry.textContent, colour: style.backgroundColor, border: style.borderLeftStyle, box: box(swatch) };
  });
  return { lanes, legend };
}
