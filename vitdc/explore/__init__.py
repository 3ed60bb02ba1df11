"""Look through the clusters of a finished run on a page of this machine: `vitdc explore`.

finding         a results directory -> its images, embeddings and the clusters of every round
collection      both splits as one numbered row of images; what is known about each, as columns
thumbnails      small pictures, made once, and strips of them for the page
layout          the 2-D map, in the background
search          nearest neighbours in embedding space; images that are not in the set
corrections     names, merges and marks: changed by patches, saved at once, never lost
exporting       names.csv and assignments.csv
server          the HTTP interface and who may use it
static/         the page: plain ES modules, no build step, nothing from the network

The page gets a few numbers per image once, as binary columns, and does the rest itself; pictures
and embeddings stay memory-mapped here. What the server keeps of N images are their names and a few
numbers each.
"""
