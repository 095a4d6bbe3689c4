// `data` and `columns` are defined before this script.
const maps = [...document.querySelectorAll("svg.map")].map((svg) => {
  const spots = [];
  for (const dot of svg.querySelectorAll("[data-i]")) spots[dot.dataset.i] = { dot, x: +dot.getAttribute("cx"), y: +dot.getAttribute("cy") };
  return { svg, spots, cursor: svg.querySelector(".cursor"), size: svg.viewBox.baseVal.width };
});
const tip = document.getElementById("tip"), picture = tip.querySelector(".pic"), caption = tip.querySelector(".words");
function hide() {
  tip.style.display = "none";
  for (const map of maps) map.cursor.style.display = "none";
}
function show(index, which, event) {
  for (const map of maps) {
    map.cursor.style.display = "inline";
    map.cursor.setAttribute("cx", map.spots[index].x);
    map.cursor.setAttribute("cy", map.spots[index].y);
  }
  const number = data.picture[index];
  picture.style.display = number < 0 ? "none" : "";
  picture.style.setProperty("--x", number % columns);
  picture.style.setProperty("--y", Math.floor(number / columns));
  const lines = [data.class ? "class " + data.class[index] : "sample " + data.row[index], data.name[index],
    "cluster " + data.clusters[which][index] + (data.on[which][index] ? ", selected" : ", not selected")];
  caption.replaceChildren(...lines.flatMap((line, place) => {
    const part = document.createElement(place ? "span" : "b");
    part.textContent = line;
    return [part, document.createElement("br")];
  }));
  tip.style.display = "flex";
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(8, event.clientX + 18 + box.width > innerWidth ? event.clientX - box.width - 18 : event.clientX + 18) + "px";
  tip.style.top = Math.max(8, Math.min(event.clientY + 14, innerHeight - box.height - 8)) + "px";
}
maps.forEach((map, which) => {
  map.svg.addEventListener("pointermove", (event) => {
    const box = map.svg.getBoundingClientRect(), scale = map.size / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = -1, least = 18 * 18;
    map.spots.forEach((spot, index) => {
      const distance = (spot.x - x) ** 2 + (spot.y - y) ** 2;
      if (distance < least) { least = distance; best = index; }
    });
    if (best < 0) hide(); else show(best, which, event);
  });
  map.svg.addEventListener("pointerleave", hide);
});
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    for (const other of document.querySelectorAll(".legend button")) other.setAttribute("aria-pressed", String(on && other === button));
    for (const map of maps) {
      map.svg.classList.toggle("lit", on);
      map.spots.forEach((spot, index) => spot.dot.classList.toggle("lit", on && data.class[index] === button.dataset.label));
    }
  });
}
