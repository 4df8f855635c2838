"""The lab: a mesh of network namespaces with real redirection and real Envoys, in which every way past the mesh is played and graded."""
