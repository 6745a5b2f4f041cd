// What a reader sees of any page, as data: words, overflow, contrast of every visible text, and marks without a colour.
() => {
  const root = document.documentElement;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const seen = new Map();

  // Layers of [colour, opacity] painted one over the other on the window's own ground, as red, green, blue.
  const paint = (layers) => {
    const key = JSON.stringify(layers);
    if (!seen.has(key)) {
      for (const [colour, opacity] of layers) {
        context.globalAlpha = opacity;
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
      }
      seen.set(key, [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)]);
    }
    return seen.get(key);
  };
  const luminance = (rgb) => {
    const [red, green, blue] = rgb.map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };

  const probe = document.createElement("i");
  probe.style.backgroundColor = "Canvas";
  document.body.append(probe);
  const ground = [[getComputedStyle(probe).backgroundColor, 1]];
  probe.remove();
  const backgrounds = new Map();
  const behind = (element) => {
    if (element === null) return ground;
    if (!backgrounds.has(element)) {
      const layer = [getComputedStyle(element).backgroundColor, 1];
      backgrounds.set(element, [...behind(element.parentElement), layer]);
    }
    return backgrounds.get(element);
  };

  // Rectangles of a drawing that were painted before a text and lie under a point of it.
  const under = (text, rects, x, y) => {
    const layers = [];
    for (const [rect, box, style] of rects) {
      if (!(rect.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING)) break;
      if (style.fill === "none" || x < box.left || x > box.right || y < box.top || y > box.bottom) continue;
      layers.push([style.fill, Number(style.fillOpacity) * Number(style.opacity)]);
    }
    return layers;
  };

  const faint = [];
  let texts = 0;
  const judge = (element, words, ink, papers) => {
    texts += 1;
    const ratio = Math.min(...papers.map((layers) => contrast(paint([...layers, [ink, 1]]), paint(layers))));
    if (ratio < 4.5) faint.push(`${element.tagName.toLowerCase()} "${words}" ${ratio.toFixed(2)}`);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const words = walker.currentNode.data.trim();
    const element = walker.currentNode.parentElement;
    if (!words || element.closest("svg") || !element.checkVisibility({ visibilityProperty: true })) continue;
    judge(element, words, getComputedStyle(element).color, [behind(element)]);
  }
  const black = [];
  const flat = [];
  const isBlack = (colour) => colour.replaceAll(" ", "") === "rgb(0,0,0)";
  for (const drawing of document.querySelectorAll("svg")) {
    const size = drawing.getBoundingClientRect();
    if (!(size.width > 0 && size.height > 0)) flat.push(drawing.getAttribute("aria-label") ?? "a drawing");
    const rects = [...drawing.querySelectorAll("rect")].map((rect) => [
      rect, rect.getBoundingClientRect(), getComputedStyle(rect),
    ]);
    for (const mark of drawing.querySelectorAll("rect, circle, path, polygon, line")) {
      const style = getComputedStyle(mark);
      const filled = mark.tagName !== "line" && style.fill !== "none";
      const bare = !filled && style.stroke === "none";
      if ((filled && isBlack(style.fill)) || bare) {
        black.push(`${mark.tagName} ${mark.getAttribute("class")}`);
      }
    }
    for (const text of drawing.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (!box.width) continue;
      const y = (box.top + box.bottom) / 2;
      const points = [box.left + 1, (box.left + box.right) / 2, box.right - 1];
      const papers = points.map((x) => [...behind(drawing), ...under(text, rects, x, y)]);
      judge(text, text.textContent, getComputedStyle(text).fill, papers);
    }
  }

  const heading = document.querySelector("h1");
  return {
    title: document.title,
    heading: heading?.checkVisibility({ visibilityProperty: true }) ? heading.textContent : "",
    sideways_px: root.scrollWidth - root.clientWidth,
    texts, faint, black, flat,
  };
}
